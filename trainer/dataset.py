"""A prepared split: its Parquet row groups, decoded to NumPy and checked on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from models.schema import Feature, Schema
from trainer.errors import UserError
from trainer.hashing import hash_ids


@dataclass(frozen=True)
class RowGroup:
    """A Parquet row group and where its first row stands in the split."""

    file: Path
    index: int
    num_rows: int
    first_row: int

    def __str__(self) -> str:
        return f"{self.file}, row group {self.index}"


@dataclass(frozen=True)
class Piece:
    """Rows `[start, stop)` of a row group."""

    row_group: RowGroup
    start: int
    stop: int


@dataclass(frozen=True)
class Rows:
    """Decoded rows.

    Attributes:
        row: `[n]` int64 row numbers.
        label: `[n]` float32.
        weight: `[n]` float32.
        dense: `[n, m]` float32.
        ids: per id feature its values (int64) and offsets (`[n + 1]`, int64).
    """

    row: NDArray[np.int64]
    label: NDArray[np.float32]
    weight: NDArray[np.float32]
    dense: NDArray[np.float32]
    ids: list[tuple[NDArray[np.int64], NDArray[np.int64]]]


class Dataset:
    """One split of a prepared dataset.

    Args:
        path: directory with `schema.yaml` and one directory of Parquet files per split.
        split: name of the split, such as `train`.

    Raises:
        UserError: a missing or unreadable file, no rows, or a column that the schema names and a file
            lacks or has with another type.
    """

    def __init__(self, path: Path, split: str) -> None:
        self.split = split
        self.schema = load_schema(path)
        files = sorted((path / split).glob("*.parquet"))
        if not files:
            have = sorted({file.parent.name for file in path.glob("*/*.parquet")})
            raise UserError(f"{path / split}: no Parquet files; splits here: {', '.join(have) or 'none'}")
        self.row_groups: list[RowGroup] = []
        self._metadata: dict[Path, pq.FileMetaData] = {}
        first_row = 0
        for file in files:
            metadata = self._metadata[file] = _read_metadata(file)
            _check_columns(file, metadata.schema.to_arrow_schema(), self.schema)
            for index in range(metadata.num_row_groups):
                num_rows = metadata.row_group(index).num_rows
                self.row_groups.append(RowGroup(file, index, num_rows, first_row))
                first_row += num_rows
        self.num_rows = first_row
        if not self.num_rows:
            raise UserError(f"{path / split}: the Parquet files hold no rows; prepare the data again")

    def read(self, pieces: Sequence[Piece], permutation: NDArray[np.int64] | None = None) -> Rows:
        """Decode these pieces, one after the other, and permute their rows.

        Raises:
            UserError: bad data (null, NaN, id out of its table, label not 0 or 1, list too long,
                truncated file), named by file, row group and column.
        """
        schema = self.schema
        names = [
            schema.label,
            *([schema.weight] if schema.weight else []),
            *(f.name for f in schema.features),
        ]
        tables, rows = [], []
        for piece in pieces:
            table = self._read_row_group(piece.row_group, names)
            _check_values(piece.row_group, table, schema)
            tables.append(_hash_columns(table.slice(piece.start, piece.stop - piece.start), schema))
            rows.append(piece.row_group.first_row + np.arange(piece.start, piece.stop))
        table, row = pa.concat_tables(tables), np.concatenate(rows)
        if permutation is not None:
            table, row = table.take(permutation), row[permutation]
        table = table.combine_chunks()
        return Rows(
            row=row,
            label=_numbers(table, schema.label),
            weight=_numbers(table, schema.weight) if schema.weight else np.ones(len(row), np.float32),
            dense=_dense(table, schema.dense_features),
            ids=[_jagged(table, feature) for feature in schema.id_features],
        )

    def column(self, name: str) -> NDArray:
        """One whole column, in the order of the files; raises UserError for nulls."""
        parts = []
        for group in self.row_groups:
            table = self._read_row_group(group, [name])
            _check_nulls(group, table)
            parts.append(table[name].to_numpy())
        return np.concatenate(parts)

    def _read_row_group(self, group: RowGroup, columns: list[str]) -> pa.Table:
        try:
            # A ParquetFile isn't safe to share between threads; its parsed footer is.
            with pq.ParquetFile(group.file, metadata=self._metadata[group.file], memory_map=True) as file:
                return file.read_row_group(group.index, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{group}: cannot be read ({_first_line(error)}); prepare the data again"
            ) from error


def load_schema(path: Path) -> Schema:
    """Schema of a prepared dataset; raises UserError if it is missing or wrong."""
    return read_schema(path / "schema.yaml")


def read_schema(file: Path) -> Schema:
    """A schema file; raises UserError if it is missing or wrong."""
    try:
        return Schema.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{file}: not found; make the dataset with `cetnet prepare`") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "schema"
        raise UserError(f"{file}: {where}: {problem['msg']}") from error
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file}: not readable as YAML: {_first_line(error)}") from error


def _read_metadata(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{file}: not a whole Parquet file ({_first_line(error)}); prepare the data again"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_columns(file: Path, arrow: pa.Schema, schema: Schema) -> None:
    wanted = [(name, "a number") for name in (schema.label, schema.weight, schema.true_probability) if name]
    if schema.group:
        wanted.append((schema.group, "an integer"))
    wanted += [(feature.name, "a number") for feature in schema.dense_features]
    for feature in schema.id_features:
        hashed = feature in schema.hashed_features
        if feature.kind == "categorical":
            wanted.append((feature.name, "an integer or text" if hashed else "an integer"))
        else:
            wanted.append((feature.name, "a list of integers or texts" if hashed else "a list of integers"))
    for name, want in wanted:
        if name not in arrow.names:
            raise UserError(f"{file}: no column {name!r}, which schema.yaml names; columns: {arrow.names}")
        kind = arrow.field(name).type
        value = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        ok = pa.types.is_integer(value) or ("text" in want and _is_text(value))
        if want == "a number":
            ok = ok or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        ok = ok and (value is not kind) == want.startswith("a list")
        if not ok:
            raise UserError(f"{file}: column {name!r} is {kind}, but schema.yaml wants {want}")


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def _bad(group: RowGroup, column: str, problem: str) -> UserError:
    return UserError(f"{group}, column {column!r}: {problem}; mend the data and prepare it again")


def _check_nulls(group: RowGroup, table: pa.Table) -> None:
    for name in table.column_names:
        if nulls := table[name].null_count:
            raise _bad(group, name, f"{nulls} null values")


def _check_values(group: RowGroup, table: pa.Table, schema: Schema) -> None:
    hashed = schema.hashed_features
    _check_nulls(group, table.drop_columns([feature.name for feature in hashed]))
    label = _numbers(table, schema.label)
    if not np.isin(label, (0, 1)).all():
        raise _bad(group, schema.label, f"label {label[~np.isin(label, (0, 1))][0]:g} is neither 0 nor 1")
    if schema.weight:
        weight = _numbers(table, schema.weight)
        if not (np.isfinite(weight) & (weight >= 0)).all():
            raise _bad(group, schema.weight, "a weight is negative, infinite or NaN")
    for feature in schema.dense_features:
        if not np.isfinite(_numbers(table, feature.name)).all():
            raise _bad(group, feature.name, "an infinite or NaN value")
    for feature in schema.id_features:
        column = table[feature.name]
        if feature.kind != "categorical":
            longest = pc.max(pc.list_value_length(column)).as_py() or 0
            if feature.max_length is not None and longest > feature.max_length:
                raise _bad(
                    group,
                    feature.name,
                    f"a sequence of {longest} ids, longer than max_length {feature.max_length}",
                )
            column = pc.list_flatten(column)
        if feature in hashed:  # any value will do
            continue
        if column.null_count:
            raise _bad(group, feature.name, f"{column.null_count} null ids")
        rows = schema.tables[str(feature.table)]
        extremes = pc.min_max(column).as_py()
        for value in (extremes["min"], extremes["max"]):
            if value is not None and not 0 <= value < rows:
                raise _bad(
                    group, feature.name, f"id {value} is outside table {feature.table!r} of {rows} rows"
                )


def _numbers(table: pa.Table, name: str) -> NDArray[np.float32]:
    return table[name].cast(pa.float32(), safe=False).to_numpy()  # integers beyond 2^24 are rounded


def _dense(table: pa.Table, features: list[Feature]) -> NDArray[np.float32]:
    columns = [_numbers(table, feature.name) for feature in features]
    return np.stack(columns, axis=1) if columns else np.empty((table.num_rows, 0), np.float32)


def _hash_columns(table: pa.Table, schema: Schema) -> pa.Table:
    """The table with the columns of hashed features as ids of their tables; file by file, whose types may differ."""
    for feature in schema.hashed_features:
        column, rows = _array(table[feature.name]), schema.id_ranges[str(feature.table)]
        if feature.kind == "categorical":
            ids = pa.array(hash_ids(column, rows))
        else:
            lengths = pc.list_value_length(column).fill_null(0).to_numpy()
            offsets = np.concatenate([[0], lengths.cumsum(dtype=np.int64)])
            ids = pa.LargeListArray.from_arrays(offsets, hash_ids(column.flatten(), rows))
        table = table.set_column(table.column_names.index(feature.name), feature.name, ids)
    return table


def _array(column: pa.ChunkedArray) -> pa.Array:
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # combine_chunks keeps an empty column chunked
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column


def _jagged(table: pa.Table, feature: Feature) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    column = _array(table[feature.name])
    if feature.kind == "categorical":
        return column.to_numpy().astype(np.int64), np.arange(len(column) + 1)
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.flatten().to_numpy().astype(np.int64), offsets - offsets[0]
