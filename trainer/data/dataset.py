"""A prepared split: its Parquet row groups, decoded to NumPy and checked on the way."""

from collections.abc import Callable, Mapping, Sequence
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
    plain,
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
from cetnet.trainer.data.data_files import DataFile, check_keys, split_files
from cetnet.trainer.data.decoded import Lists, Rows
from cetnet.trainer.data.parquet_files import ParquetFiles, RowGroup
from cetnet.trainer.encoder.hashing import hash_ids
from cetnet.trainer.errors import UserError
from cetnet.trainer.yaml_files import read_model

BadRowPolicy = Literal["fail", "quarantine"]


@dataclass(frozen=True)
class Piece:
    """Rows `[start, stop)` of a row group."""

    row_group: RowGroup
    start: int
    stop: int


@dataclass(frozen=True)
class RawColumns:
    """How raw rows become those of a schema.

    Attributes:
        uses: the columns that are read, and what for.
        encode: rows of a file, of these columns, as columns of the schema; raises UserError for a bad value.
        roles: columns of label, weight, group and timestamp that files may have, by their names in the schema.
        role: values of such a column by its name in the schema: numbers, texts of the group, or seconds.
        known: of values of a column whether the model knows them, bool; None if it looks up none by a vocabulary.
        unknown: values that this process has encoded of each feature with a vocabulary, and how many of them are new.
        drift: of such numbers, of all processes together, what there is to be said; None if nothing.
    """

    uses: Sequence[tuple[str, Use]]
    encode: Callable[[pa.Table, RowGroup], pa.Table]
    roles: Mapping[str, str]
    role: Callable[[str, pa.ChunkedArray], pa.Array]
    known: Callable[[str, pa.ChunkedArray], NDArray[np.bool_] | None]
    unknown: Mapping[str, tuple[int, int]]
    drift: Callable[[Sequence[Mapping[str, tuple[int, int]]]], str | None]


@dataclass(frozen=True)
class Source:
    """Rows that have no `schema.yaml` beside them.

    Attributes:
        schema: what they are to be.
        files: where they are.
        raw: how they become it; None if they are it.
    """

    schema: Schema
    files: Sequence[DataFile]
    raw: RawColumns | None = None


class Dataset:
    """One split of a prepared dataset, or rows from elsewhere.

    Args:
        path: directory with `schema.yaml` and one directory of Parquet files (`data_files`) per split.
        split: name of the split, such as `train`.
        bad_rows: `fail`, or `quarantine`: they keep their place, but count for nothing.
        labelled: whether label and weight are read; if not, the files need none of the columns beside the
            features, and labels and weights are 1.
        source: the rows, if they aren't those of a split; then `path` and `split` only say so in messages.

    Attributes:
        names: columns that `read` reads.
        raw: how raw rows become those of the schema; None for prepared ones.
        place: for messages.

    Raises:
        UserError: a missing or unreadable file, no rows, a column that the schema names and a file lacks or has
            with a type that it can't be (`arrow_types`).
    """

    def __init__(
        self,
        path: Path,
        split: str,
        bad_rows: BadRowPolicy = "fail",
        *,
        labelled: bool = True,
        source: Source | None = None,
    ) -> None:
        self.path, self.split, self.bad_rows = path, split, bad_rows
        self.place = path if source else path / split
        self.schema = schema = source.schema if source else load_schema(path)
        self.raw = source.raw if source else None
        beside = [schema.label, *([schema.weight] if schema.weight else [])] if labelled else []
        self.names = [*beside, *(feature.name for feature in schema.features)]
        uses = [(name, use) for name, use in prepared_uses(schema) if labelled or name in self.names]
        files = list(source.files) if source else split_files(path, split)
        if self.raw:  # of directories come texts
            uses = [(name, Use("value") if name in files[0].keys else use) for name, use in self.raw.uses]
        self._uses = dict(uses)
        self.row_groups: list[RowGroup] = []
        self._files = ParquetFiles([file.path for file in files])
        self._keys = {file.path: file.keys for file in files}
        self._odd: dict[Path, set[str]] = {}  # columns to be brought to plain form
        first_row = 0
        checked, odd = None, set[str]()
        wanting = "schema.yaml" if not source else f"the run's {'encoding' if self.raw else 'schema'}.yaml"
        for file, footer in self._files.footers.items():
            keys = self._keys[file]
            if checked is None or not footer.columns.equals(checked):  # there may be thousands alike
                check_keys(file, footer.columns.names, keys)
                check_columns(file, footer.columns, uses, wanting, keys)
                checked, odd = footer.columns, not_plain(footer.columns, uses) | set(keys)
            self._odd[file] = odd
            for name, use in uses:
                if name in keys:
                    key_column(file, name, keys[name], use, 0)
            of_file = self._files.row_groups(file, first_row, in_blocks=source is not None)
            self.row_groups += of_file
            first_row += sum(group.num_rows for group in of_file)
        if labelled and not self.raw and schema.group and schema.group not in files[0].keys:
            check_one_sign(
                {file: footer.columns for file, footer in self._files.footers.items()}, schema.group
            )
        self.num_rows = first_row
        if not self.num_rows:
            remedy = "name files that have some" if source else "prepare the data again"
            raise UserError(f"{self.place}: the files hold no rows; {remedy}")

    def read(self, pieces: Sequence[Piece], permutation: NDArray[np.int64] | None = None) -> Rows:
        """Decode these pieces, one after the other, and permute their rows.

        Raises:
            UserError: a row group can't be read or its file changed since this object was made; bad rows (see
                `find_bad_rows`) unless they are quarantined. Both name file and row group, the latter row and column.
        """
        groups = [piece.row_group for piece in pieces]
        tables = [self._columns(group) for group in groups]
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

    def _columns(self, group: RowGroup) -> pa.Table:
        if self.raw:
            return self.raw.encode(self._read_row_group(group, list(self._uses), self._uses), group)
        return _hash_columns(self._read_row_group(group, self.names, self._uses), self.schema)

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
        return self._files.footers[file].metadata

    def has(self, name: str) -> bool:
        """Whether a file of the split has a column of this name that holds what the schema says (numbers)."""
        return any(self._has(file, name) for file in self._files.footers)

    def column(self, name: str, wanted: NDArray[np.bool_] | None = None) -> pa.Array:
        """A column of all rows, or of those wanted (`[num_rows]`), in the order of the files.

        Null where a file lacks it. Raises UserError for a row group that can't be read.
        """
        parts = []
        for group in self.row_groups:
            rows = wanted[group.first_row :][: group.num_rows] if wanted is not None else None
            part = self._role(group, name) if self._has(group.file, name) else pa.nulls(group.num_rows)
            parts.append(part if rows is None else part.filter(pa.array(rows)))
        kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
        widest = pa.int64() if name == self.schema.group else pa.float64()
        kind = kinds.pop() if len(kinds) == 1 else widest
        column = pa.concat_arrays([part.cast(kind) for part in parts])
        return _integers(column) if self.raw and name == self.schema.group else column

    def label_and_weight(self, group: RowGroup) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the rows of a row group, NaN where they are null; weights are 1 if there are none."""
        label, weight = (
            self._role(group, name).cast(pa.float64()).fill_null(np.nan).to_numpy()
            if name and self._has(group.file, name)
            else np.ones(group.num_rows)
            for name in (self.schema.label, self.schema.weight)
        )
        return label, weight

    def given(self, group: RowGroup, names: Sequence[str]) -> pa.Table:
        """Columns of a row group as its file has them, of any type; texts where its directories name them."""
        stored, keys = [name for name in names if name not in self._keys[group.file]], self._keys[group.file]
        table = self._files.stored(group, stored)
        for name in names:
            if name in keys:
                table = table.append_column(
                    name, pa.repeat(pa.scalar(keys[name], pa.string()), group.num_rows)
                )
        return table.select(list(names))

    def given_types(self, name: str) -> dict[Path, pa.DataType | None]:
        """By file, the type of a column that it may have; None if it lacks it, or has several of this name."""
        return {
            file: pa.string() if name in self._keys[file] else footer.type_of(name)
            for file, footer in self._files.footers.items()
        }

    def seconds(self, group: RowGroup, name: str) -> pa.Array | None:
        """Times in a column of the files, in seconds since 1970 or null; None if it isn't the timestamp."""
        timestamp = self.schema.timestamp
        column = self.raw.roles.get(timestamp or "") if self.raw else timestamp
        if not timestamp or name != column or not self._has(group.file, timestamp):
            return None
        return self._role(group, timestamp)

    def known(self, group: RowGroup, name: str) -> NDArray[np.bool_] | None:
        """Which values of a column are in the model's vocabulary, by row; None if it has none of the column."""
        if self.raw:
            uses = {column: use for column, use in self.raw.uses if column == name}
            return self.raw.known(name, self._read_row_group(group, [name], uses)[name]) if uses else None
        if self.vocabulary_of(name) is None:
            return None
        return _array(self._read_row_group(group, [name], self._uses)[name]).to_numpy() > 0

    def vocabulary_of(self, name: str) -> str | None:
        """The table of a column with an id in each row that stands for a value of its vocabulary; else None."""
        features = [] if self.raw else self.schema.of_kind("categorical")
        table = next((feature.table for feature in features if feature.name == name), None)
        return table if table in (self.schema.vocabularies or {}) else None

    def _role(self, group: RowGroup, name: str) -> pa.Array:
        """Label, weight, group, timestamp or true probability."""
        column = self.raw.roles[name] if self.raw else name
        use = Use("value") if self.raw and column in self._keys[group.file] else self._use(name)
        values = plain(self._read_row_group(group, [column], {column: use})[column], use)
        return self.raw.role(name, values) if self.raw else _array(values)

    def _use(self, name: str) -> Use:
        if name == self.schema.timestamp != self.schema.group:
            return Use("time", text=self.raw is not None)
        if self.raw:
            return Use("value" if name == self.schema.group else "number", text=True)
        return Use("id" if name == self.schema.group else "number")

    def _has(self, file: Path, name: str) -> bool:
        if self.raw:
            if name not in self.raw.roles:
                return False
            column = self.raw.roles[name]
        else:
            column = name
        kind = self._files.footers[file].type_of(column)
        return column in self._keys[file] or (kind is not None and is_accepted(kind, self._use(name)))

    def _read_row_group(self, group: RowGroup, columns: list[str], uses: Mapping[str, Use]) -> pa.Table:
        keys = self._keys[group.file]
        table = self._files.stored(group, [name for name in columns if name not in keys])
        for name in columns:
            if name in keys:
                values = key_column(group.file, name, keys[name], uses[name], group.num_rows)
                table = table.append_column(name, values)
        if table.column_names != columns:
            table = table.select(list(dict.fromkeys(columns)))
        return plain_table(table, {name: uses[name] for name in columns if name in self._odd[group.file]})


def load_schema(path: Path) -> Schema:
    """Schema of a prepared dataset; raises UserError if it is missing or wrong."""
    return read_schema(path / "schema.yaml")


def read_schema(file: Path) -> Schema:
    """A schema file; raises UserError if it is missing or wrong."""
    if not file.exists():
        raise UserError(f"{file}: not found; make the dataset with `cetnet prepare`")
    return read_model(file, Schema)


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


def _integers(texts: pa.Array) -> pa.Array:
    """Texts as integers, if all are written as an int64 is."""
    try:
        numbers = texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return texts
    return numbers if numbers.cast(texts.type).equals(texts) else texts


def _array(column: pa.ChunkedArray) -> pa.Array:
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # combine_chunks keeps an empty column chunked
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column
