"""Rows that nothing can be learned from: looked for column by column, and named only where a column has one."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cetnet.models.schema import Feature, Schema


class BadRow(NamedTuple):
    """A row, and the first of its columns that is wrong; `row` counts from 0 within the file."""

    file: Path
    row_group: int
    row: int
    column: str
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.file}, row group {self.row_group}, row {self.row} (of the file, from 0), "
            f"column {self.column!r}: {self.problem}"
        )


def find_bad_rows(table: pa.Table, schema: Schema) -> dict[int, tuple[str, str]]:
    """Per bad row, by its position in the table and in that order, the first column that is wrong, and why.

    Bad are: a null, an id outside its table, a null id in a list, a sequence longer than its `max_length`, a dense
    value that is NaN or infinite as float32, a label other than 0 and 1, a weight that is negative, NaN or infinite.
    """
    found: dict[int, tuple[str, str]] = {}
    for name, why in _number_columns(schema):
        if name not in table.column_names:
            continue
        values = float_column(table, name)
        good = good_numbers(values, name, schema)
        if not good.all():
            for row in np.flatnonzero(~good).tolist():
                value = table[name][row].as_py()
                found.setdefault(row, (name, f"{'null' if value is None else value} {why}"))
    sizes = schema.tables | schema.id_ranges
    for feature in schema.id_features:
        column, rows = table[feature.name], sizes[str(feature.table)]
        if not ids_are_good(column, feature, rows):
            for row, value in enumerate(column.to_pylist()):
                if problem := _id_problem(value, feature, rows):
                    found.setdefault(row, (feature.name, problem))
    return dict(sorted(found.items()))


def good_numbers(values: NDArray[np.float32], name: str, schema: Schema) -> NDArray[np.bool_]:
    """Which values of a column, as `float_column` gives them, are none of those that `find_bad_rows` looks for."""
    if name == schema.label:
        return (values == 0) | (values == 1)
    finite = np.isfinite(values)
    return finite & (values >= 0) if name == schema.weight else finite


def ids_are_good(column: pa.ChunkedArray, feature: Feature, rows: int) -> bool:
    """Whether a column holds none of the ids and lists that `find_bad_rows` looks for; `rows` are its table's."""
    if feature.kind != "categorical":
        longest = pc.max(pc.list_value_length(column)).as_py() or 0
        if column.null_count or (feature.max_length is not None and longest > feature.max_length):
            return False
        column = pc.list_flatten(column)
    if column.null_count:
        return False
    ids = column.to_numpy()
    return not len(ids) or bool(ids.min() >= 0 and ids.max() < rows)


def replace_rows(table: pa.Table, bad: list[int]) -> pa.Table:
    """The table with other contents in the bad rows: good rows', or zeros and empty lists if there are none."""
    source = np.arange(table.num_rows)
    good = np.delete(source, bad)
    if len(good):
        source[bad] = good[np.arange(len(bad)) % len(good)]
        return table.take(source)
    return pa.table({field.name: _zeros(field.type, table.num_rows) for field in table.schema})


def float_column(table: pa.Table, name: str) -> NDArray[np.float32]:
    """A column of numbers; nulls are NaN, and integers beyond 2^24 are rounded."""
    return table[name].cast(pa.float32(), safe=False).to_numpy()


def _number_columns(schema: Schema) -> list[tuple[str, str]]:
    return [
        (schema.label, "is neither 0 nor 1"),
        *([(schema.weight, "is not a finite number of 0 or more")] if schema.weight else []),
        *((feature.name, "is not a finite number (float32)") for feature in schema.dense_features),
    ]


def _id_problem(value: Any, feature: Feature, rows: int) -> str | None:
    if value is None:
        return "null"
    ids = [value] if feature.kind == "categorical" else value
    if feature.max_length is not None and len(ids) > feature.max_length:
        return f"a sequence of {len(ids)} ids, longer than max_length {feature.max_length}"
    for one in ids:
        if one is None:
            return "a null id"
        if not 0 <= one < rows:
            return f"id {one} is outside table {feature.table!r} of {rows} rows"
    return None


def _zeros(kind: pa.DataType, count: int) -> pa.Array:
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return pa.array([[]] * count if nested else np.zeros(count, kind.to_pandas_dtype()), kind)
