"""A prepared split: its Parquet row groups, decoded to NumPy and checked on the way."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cetnet.models.schema import Schema
from cetnet.trainer.data.arrow_types import (
    Use,
    alike,
    check_columns,
    check_one_sign,
    is_accepted,
    key_column,
    not_plain,
    plain_table,
    prepared_uses,
)
from cetnet.trainer.data.bad_rows import (
    BadRow,
    find_bad_rows,
    float_column,
    good_numbers,
    ids_are_good,
    replace_rows,
)
from cetnet.trainer.data.data_files import check_keys, split_files
from cetnet.trainer.data.decoded import Lists, Rows
from cetnet.trainer.encoder.hashing import hash_ids
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
        path: directory with `schema.yaml` and one directory of Parquet files (`data_files`) per split.
        split: name of the split, such as `train`.
        bad_rows: `fail`, or `quarantine`: they keep their place, but count for nothing.
        labelled: whether label and weight are read; if not, the files need none of the columns beside the
            features, and labels and weights are 1.

    Attributes:
        names: columns that `read` reads.

    Raises:
        UserError: a missing or unreadable file, no rows, a column that the schema names and a file lacks or has
            with a type that it can't be (`arrow_types`).
    """

    def __init__(
        self, path: Path, split: str, bad_rows: BadRowPolicy = "fail", *, labelled: bool = True
    ) -> None:
        self.path, self.split, self.bad_rows = path, split, bad_rows
        self.schema = schema = load_schema(path)
        beside = [schema.label, *([schema.weight] if schema.weight else [])] if labelled else []
        self.names = [*beside, *(feature.name for feature in schema.features)]
        uses = [(name, use) for name, use in prepared_uses(schema) if labelled or name in self.names]
        self._uses = dict(uses)
        files = split_files(path, split)
        self.row_groups: list[RowGroup] = []
        self._footers = {file.path: _read_footer(file.path) for file in files}
        self._keys = {file.path: file.keys for file in files}
        self._odd: dict[Path, set[str]] = {}  # columns to be brought to plain form
        first_row = 0
        checked, odd = None, set[str]()
        for file, footer in self._footers.items():
            keys = self._keys[file]
            if checked is None or not footer.columns.equals(checked):  # there may be thousands alike
                check_keys(file, footer.columns.names, keys)
                check_columns(file, footer.columns, uses, "schema.yaml", keys)
                checked, odd = footer.columns, not_plain(footer.columns, uses) | set(keys)
            self._odd[file] = odd
            for name, use in uses:
                if name in keys:
                    key_column(file, name, keys[name], use, 0)
            row_in_file = 0
            for index, num_rows in enumerate(footer.row_groups):
                self.row_groups.append(RowGroup(file, index, num_rows, first_row, row_in_file))
                first_row, row_in_file = first_row + num_rows, row_in_file + num_rows
        if labelled and schema.group and schema.group not in files[0].keys:
            check_one_sign({file: footer.columns for file, footer in self._footers.items()}, schema.group)
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
        tables = [
            _hash_columns(self._read_row_group(group, self.names, self._uses), self.schema)
            for group in groups
        ]
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
            skip = "; training can skip bad rows: data.bad_rows=quarantine"
            raise _bad(list(bad.values()), skip if self.schema.label in self.names else "")
        return bad

    def metadata(self, file: Path) -> pq.FileMetaData:
        """The footer of one of the files."""
        return self._footers[file].metadata

    def has(self, name: str) -> bool:
        """Whether a file of the split has a column of this name that holds what the schema says (numbers)."""
        return any(self._has(file, name) for file in self._footers)

    def column(self, name: str, wanted: NDArray[np.bool_] | None = None) -> pa.Array:
        """A column of all rows, or of those wanted (`[num_rows]`), in the order of the files.

        Null where a file lacks it. Raises UserError for a row group that can't be read.
        """
        use = self._use(name)
        parts = []
        for group in self.row_groups:
            rows = wanted[group.first_row :][: group.num_rows] if wanted is not None else None
            if self._has(group.file, name):
                part = _array(self._read_row_group(group, [name], {name: use})[name])
            else:
                part = pa.nulls(group.num_rows)
            parts.append(part if rows is None else part.filter(pa.array(rows)))
        kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
        widest = pa.int64() if use.role == "id" else pa.float64()
        kind = kinds.pop() if len(kinds) == 1 else widest
        return pa.concat_arrays([part.cast(kind) for part in parts])

    def _use(self, name: str) -> Use:
        return Use("id" if name == self.schema.group else "number")

    def _has(self, file: Path, name: str) -> bool:
        kind = self._footers[file].type_of(name)
        return name in self._keys[file] or (kind is not None and is_accepted(kind, self._use(name)))

    def _read_row_group(self, group: RowGroup, columns: list[str], uses: Mapping[str, Use]) -> pa.Table:
        footer, keys = self._footers[group.file], self._keys[group.file]
        stored = [name for name in columns if name not in keys]
        problem = None
        try:
            # A ParquetFile isn't safe to share between threads; its parsed footer is. Not mapped into memory: a file
            # that is truncated meanwhile would kill the process (SIGBUS).
            with pq.ParquetFile(
                group.file, metadata=footer.metadata, page_checksum_verification=True, pre_buffer=True
            ) as file:
                table = file.read_row_group(group.index, columns=stored, use_threads=False)
                if table.num_rows != group.num_rows:
                    problem = f"{table.num_rows} rows where its footer says {group.num_rows}"
        except (OSError, ValueError, pa.ArrowException) as error:
            problem = _first_line(error)
        if changed := _changed(group.file, footer):
            raise UserError(f"{group.file}: {changed}; restore it, or start a new run")
        if problem:
            raise UserError(f"{group}: cannot be read ({problem}); prepare the data again")
        for name in columns:
            if name in keys:
                values = key_column(group.file, name, keys[name], uses[name], group.num_rows)
                table = table.append_column(name, values)
        if table.column_names != columns:
            table = table.select(list(dict.fromkeys(columns)))
        return plain_table(table, {name: uses[name] for name in columns if name in self._odd[group.file]})


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

    def type_of(self, name: str) -> pa.DataType | None:
        """The type of a column; None if there is none, or several of this name."""
        return self.columns.field(name).type if self.columns.names.count(name) == 1 else None


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
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the content
            raise UserError(
                f"{file}: cannot be read ({os.strerror(error.errno)}); make it readable"
            ) from error
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

    table = pa.concat_tables(alike(tables, schema), promote_options="default")
    row = row if order is None else row.take(order)
    sizes = schema.tables | schema.id_ranges
    categorical = schema.of_kind("categorical")
    narrow = all(sizes[str(feature.table)] <= 2**31 for feature in categorical)
    names = [schema.label, schema.weight, *(feature.name for feature in schema.dense_features)]
    block = np.empty((len(names), len(row)), np.float32)
    ids = np.empty((len(categorical), len(row)), np.int32 if narrow else np.int64)
    lists = []

    for out, name in zip(block, names, strict=True):
        if name is None or name not in table.column_names:
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
