"""A prepared split: its Parquet row groups, decoded to NumPy and checked on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cetnet.models.schema import Schema
from cetnet.trainer.data.bad_rows import (
    BadRow,
    find_bad_rows,
    float_column,
    good_numbers,
    ids_are_good,
    replace_rows,
)
from cetnet.trainer.data.decoded import Lists, Rows
from cetnet.trainer.data.hashing import hash_ids
from cetnet.trainer.errors import UserError
from cetnet.trainer.yaml_files import read_model

BadRowPolicy = Literal["fail", "quarantine"]


@dataclass(frozen=True)
class RowGroup:
    """A Parquet row group and where its first row stands in the split, and in its file."""

    file: Path
    index: int
    num_rows: int
    first_row: int
    row_in_file: int

    def __str__(self) -> str:
        return f"{self.file}, row group {self.index}"


@dataclass(frozen=True)
class Piece:
    """Rows `[start, stop)` of a row group."""

    row_group: RowGroup
    start: int
    stop: int


class Dataset:
    """One split of a prepared dataset.

    Args:
        path: directory with `schema.yaml` and one directory of Parquet files per split.
        split: name of the split, such as `train`.
        bad_rows: `fail`, or `quarantine`: they keep their place, but count for nothing.

    Raises:
        UserError: a missing or unreadable file, no rows, a column that the schema names and a file lacks or has
            with another type, or files whose types differ.
    """

    def __init__(self, path: Path, split: str, bad_rows: BadRowPolicy = "fail") -> None:
        self.path, self.split, self.bad_rows = path, split, bad_rows
        self.schema = schema = load_schema(path)
        self._names = [schema.label, *([schema.weight] if schema.weight else [])]
        self._names += [feature.name for feature in schema.features]
        files = sorted((path / split).glob("*.parquet"))
        if not files:
            have = sorted({file.parent.name for file in path.glob("*/*.parquet")})
            raise UserError(f"{path / split}: no Parquet files; splits here: {', '.join(have) or 'none'}")
        self.row_groups: list[RowGroup] = []
        self._footers = {file: _read_footer(file) for file in files}
        first_row = 0
        for file, footer in self._footers.items():
            _check_columns(file, footer.columns, self.schema)
            _check_same_types(file, footer.columns, files[0], self._footers[files[0]].columns, self.schema)
            row_in_file = 0
            for index, num_rows in enumerate(footer.row_groups):
                self.row_groups.append(RowGroup(file, index, num_rows, first_row, row_in_file))
                first_row, row_in_file = first_row + num_rows, row_in_file + num_rows
        self.num_rows = first_row
        if not self.num_rows:
            raise UserError(f"{path / split}: the Parquet files hold no rows; prepare the data again")

    def read(self, pieces: Sequence[Piece], permutation: NDArray[np.int64] | None = None) -> Rows:
        """Decode these pieces, one after the other, and permute their rows.

        Raises:
            UserError: a row group can't be read or its file changed since this object was made; bad rows (see
                `find_bad_rows`) unless they are quarantined. Both name file and row group, the latter row and column.
        """
        groups = [piece.row_group for piece in pieces]
        tables = [_hash_columns(self._read_row_group(group, self._names), self.schema) for group in groups]
        starts = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
        spans = [
            (start + piece.start, start + piece.stop) for start, piece in zip(starts, pieces, strict=False)
        ]
        order = np.concatenate([np.arange(*span) for span in spans])
        row = np.concatenate([group.first_row + np.arange(group.num_rows) for group in groups])
        if permutation is not None:
            order = order[permutation]
        as_they_are = permutation is None and len(order) == len(row)
        arguments = (row, None if as_they_are else order, self.schema)
        rows = _to_rows(tables, *arguments)
        if rows is None:
            bad: dict[int, BadRow] = {}
            for i, (group, start) in enumerate(zip(groups, starts, strict=False)):
                found = self._find_bad(tables[i], group)
                bad |= {start + at: what for at, what in found.items()}
                tables[i] = replace_rows(tables[i], list(found))
            rows = _to_rows(tables, *arguments)
            assert rows is not None
            skipped = np.flatnonzero(np.isin(order, list(bad))).tolist()
            rows.row[skipped], rows.numbers[1, skipped] = -1, 0
            rows.bad.update((at, bad[order[at]]) for at in skipped)
        return rows

    def _find_bad(self, table: pa.Table, group: RowGroup) -> dict[int, BadRow]:
        bad = {
            row: BadRow(group.file, group.index, group.row_in_file + row, *what)
            for row, what in find_bad_rows(table, self.schema).items()
        }
        if bad and self.bad_rows == "fail":
            raise _bad(list(bad.values()), "; training can skip bad rows: data.bad_rows=quarantine")
        return bad

    def column(self, name: str, wanted: NDArray[np.bool_] | None = None) -> NDArray:
        """A column of all rows, or of those wanted (`[num_rows]`), in the order of the files.

        Raises UserError for nulls, or a row group that can't be read.
        """
        parts = []
        for group in self.row_groups:
            table = self._read_row_group(group, [name])
            rows = np.arange(group.num_rows)
            if wanted is not None:
                rows = np.flatnonzero(wanted[group.first_row : group.first_row + group.num_rows])
                table = table.take(rows)
            if table[name].null_count:
                nulls = group.row_in_file + rows[table[name].is_null().to_numpy()]
                raise _bad([BadRow(group.file, group.index, row, name, "null") for row in nulls.tolist()])
            parts.append(table[name].to_numpy())
        return np.concatenate(parts)

    def _read_row_group(self, group: RowGroup, columns: list[str]) -> pa.Table:
        footer = self._footers[group.file]
        problem = None
        try:
            # A ParquetFile isn't safe to share between threads; its parsed footer is. Not mapped into memory: a file
            # that is truncated meanwhile would kill the process (SIGBUS).
            with pq.ParquetFile(
                group.file, metadata=footer.metadata, page_checksum_verification=True, pre_buffer=True
            ) as file:
                table = file.read_row_group(group.index, columns=columns, use_threads=False)
                if table.num_rows != group.num_rows:
                    problem = f"{table.num_rows} rows where its footer says {group.num_rows}"
        except (OSError, ValueError, pa.ArrowException) as error:
            problem = _first_line(error)
        if changed := _changed(group.file, footer):
            raise UserError(f"{group.file}: {changed}; restore it, or start a new run")
        if problem:
            raise UserError(f"{group}: cannot be read ({problem}); prepare the data again")
        return table


@dataclass(frozen=True)
class _Footer:
    """What a file said of itself when it was opened first, and what its directory entry was then.

    Attributes:
        row_groups: their numbers of rows.
        entry: size in bytes and time of the last change in nanoseconds.
    """

    metadata: pq.FileMetaData
    columns: pa.Schema
    row_groups: list[int]
    entry: tuple[int, int]


def load_schema(path: Path) -> Schema:
    """Schema of a prepared dataset; raises UserError if it is missing or wrong."""
    return read_schema(path / "schema.yaml")


def read_schema(file: Path) -> Schema:
    """A schema file; raises UserError if it is missing or wrong."""
    if not file.exists():
        raise UserError(f"{file}: not found; make the dataset with `cetnet prepare`")
    return read_model(file, Schema)


def _read_footer(file: Path) -> _Footer:
    try:
        stat = file.stat()
        metadata = pq.read_metadata(file)
        return _Footer(
            metadata=metadata,
            columns=metadata.schema.to_arrow_schema(),
            row_groups=[metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)],
            entry=(stat.st_size, stat.st_mtime_ns),
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{file}: not a whole Parquet file ({_first_line(error)}); prepare the data again"
        ) from error


def _changed(file: Path, footer: _Footer) -> str | None:
    """What happened to the file since its footer was read."""
    try:
        stat = file.stat()
    except OSError as error:
        return f"was there when the run began and is no more ({error.strerror})"
    return None if (stat.st_size, stat.st_mtime_ns) == footer.entry else "was changed since the run began"


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
        if arrow.names.count(name) != 1:
            has = f"{arrow.names.count(name)} columns" if name in arrow.names else "no column"
            raise UserError(f"{file}: {has} {name!r}, which schema.yaml names; columns: {arrow.names}")
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


def _check_same_types(
    file: Path, columns: pa.Schema, first: Path, expected: pa.Schema, schema: Schema
) -> None:
    names = [schema.label, schema.weight, schema.group, schema.true_probability]
    features = [feature.name for feature in schema.features if feature not in schema.hashed_features]
    for name in (*filter(None, names), *features):
        here, there = columns.field(name).type, expected.field(name).type
        if here != there:
            raise UserError(
                f"{file}: column {name!r} is {here}, but {there} in {first.name}; write all files alike"
            )


def _bad(rows: list[BadRow], remedy: str = "") -> UserError:
    more = f" (and {len(rows) - 1} more bad rows in this row group)" if len(rows) > 1 else ""
    return UserError(f"{rows[0]}{more}; fix the data and prepare it again{remedy}")


def _to_rows(
    tables: list[pa.Table], row: NDArray[np.int64], order: NDArray[np.int64] | None, schema: Schema
) -> Rows | None:
    """Rows of the tables, whose numbers are `row`, all or by position; None if there are bad ones.

    One column after the other is joined, checked and put in order, while it is in the processor's cache.
    """

    def copy(values: NDArray, out: NDArray) -> None:
        if order is None:
            out[:] = values
        else:  # with `clip` it writes to `out` at once, not to a buffer first
            values.astype(out.dtype, copy=False).take(order, out=out, mode="clip")

    table = pa.concat_tables(tables, promote_options="default")
    row = row if order is None else row.take(order)
    sizes = schema.tables | schema.id_ranges
    categorical = schema.of_kind("categorical")
    narrow = all(sizes[str(feature.table)] <= 2**31 for feature in categorical)
    names = [schema.label, schema.weight, *(feature.name for feature in schema.dense_features)]
    block = np.empty((len(names), len(row)), np.float32)
    ids = np.empty((len(categorical), len(row)), np.int32 if narrow else np.int64)
    lists = []

    for out, name in zip(block, names, strict=True):
        if name is None:
            out[:] = 1
            continue
        values = float_column(table, name)
        if not good_numbers(values, name, schema).all():
            return None
        copy(values, out)
    rest = iter(ids)
    for feature in schema.id_features:
        column = _array(table[feature.name])
        if not ids_are_good(column, feature, sizes[str(feature.table)]):
            return None
        if feature.kind == "categorical":
            copy(column.to_numpy(), next(rest))
        else:
            offsets = column.offsets.to_numpy().astype(np.int64)
            one = Lists(column.flatten().to_numpy(), offsets - offsets[0])
            lists.append(one if order is None else one.take(order))
    return Rows(row, block, ids, lists, bad={})


def _hash_columns(table: pa.Table, schema: Schema) -> pa.Table:
    """The table with the columns of hashed features as ids of their tables; file by file, whose types may differ."""
    ranges = schema.id_ranges
    for feature in schema.hashed_features:
        column, rows = _array(table[feature.name]), ranges[str(feature.table)]
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
