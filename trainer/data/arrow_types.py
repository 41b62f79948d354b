"""Whether the columns of Parquet files have the types (`encoder/arrow_values.py`) for what they are used as.

One list for raw files and for prepared ones: raw columns may be text besides, which `cetnet prepare` reads.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from cetnet.models.schema import Schema
from cetnet.trainer.encoder.arrow_values import (
    Role,
    Use,
    is_accepted,
    is_plain,
    plain,
    remedy,
    value_type,
    words,
)
from cetnet.trainer.errors import UserError


def prepared_uses(schema: Schema) -> list[tuple[str, Use]]:
    """What the columns of a dataset that is read directly are for, features last; one may have several uses."""
    numbers = [schema.label, schema.weight, schema.true_probability, *(f.name for f in schema.dense_features)]
    uses = [(name, Use("number")) for name in numbers if name]
    uses += [(schema.group, Use("id"))] if schema.group else []
    hashed = schema.hashed_features
    for feature in schema.id_features:
        role: Role = "value" if feature in hashed else "id"
        uses.append((feature.name, Use(role, feature.kind != "categorical")))
    return uses


def check_columns(
    file: Path,
    columns: pa.Schema,
    uses: Iterable[tuple[str, Use]],
    schema: str,
    keys: Container[str] = (),
) -> None:
    """Raise UserError, with file, column and type, for a column that is missing, there twice or of a wrong type.

    Args:
        file: the Parquet file.
        columns: what it says it has.
        uses: of the columns wanted.
        schema: who wants them, in words.
        keys: of the directories that the file is in: columns of text.
    """
    for name, use in uses:
        count = columns.names.count(name)
        if name in keys:
            kind, use = pa.string(), use if use.many else use._replace(text=True)
        elif count == 1:
            kind = columns.field(name).type
        else:
            has = f"{count} columns" if count else "no column"
            similar = [
                other for other in columns.names if other.strip().casefold() == name.strip().casefold()
            ]
            hint = f"; is it {similar[0]!r}?" if similar and not count else ""
            raise UserError(f"{file}: {has} {name!r}, which {schema} names; columns: {columns.names}{hint}")
        if not is_accepted(kind, use):
            raise UserError(
                f"{file}: column {name!r} is {kind}, but {schema} wants {words(use)}: {remedy(kind, use)}"
            )


def check_one_sign(columns: Mapping[Path, pa.Schema], name: str) -> None:
    """Raise UserError if a column of integers is uint64 in one file and not in another: no type holds both."""
    first, expected = None, None
    for file, of_file in columns.items():
        kind = value_type(of_file.field(name).type)
        if pa.types.is_null(kind):
            continue
        if first is None:
            first, expected = file, kind
        if pa.types.is_uint64(kind) != pa.types.is_uint64(expected):
            raise UserError(
                f"{file}: column {name!r} is {kind}, but {expected} in {first.name}; write all files alike"
            )


def key_column(file: Path, name: str, value: str | None, use: Use, rows: int) -> pa.Array:
    """The column that a directory `name=value` gives a file: `rows` times the value, as a dictionary.

    Raises UserError for text that isn't the number wanted.
    """
    kind = {"number": pa.float64(), "id": pa.int64()}.get(use.role, pa.string())
    try:
        dictionary = pa.array([value], pa.string()).cast(kind)
    except pa.ArrowInvalid:
        raise UserError(
            f"{file}: its directory {name}={value} should name {words(use)}, as schema.yaml wants: rename it"
        ) from None
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int8), dictionary)


def plain_table(table: pa.Table, uses: Mapping[str, Use]) -> pa.Table:
    """The table with the columns that have a use in plain form."""
    for name, use in uses.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, plain(table[name], use))
    return table


def not_plain(columns: pa.Schema, uses: Iterable[tuple[str, Use]]) -> set[str]:
    """The columns that are not in plain form for each of their uses."""
    return {
        name for name, use in uses if name in columns.names and not is_plain(columns.field(name).type, use)
    }


def alike(tables: list[pa.Table], schema: Schema) -> list[pa.Table]:
    """Plain tables with one type a column, if need be: numbers float32, ids int64.

    An id beyond int64 becomes a negative one, which is no id either.
    """
    if all(table.schema.equals(tables[0].schema) for table in tables[1:]):
        return tables
    uses = dict(prepared_uses(schema))
    types = [[field.type for field in table.schema] for table in tables]
    for index, name in enumerate(tables[0].column_names):
        if len({of_table[index] for of_table in types}) > 1:
            use = uses[name]
            kind = pa.float32() if use.role == "number" else pa.int64()
            kind = pa.large_list(kind) if use.many else kind
            tables = [
                table.set_column(index, name, table.column(index).cast(kind, safe=False)) for table in tables
            ]
    return tables
