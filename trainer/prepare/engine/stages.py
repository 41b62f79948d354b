"""What the tasks of a preparation do, stage by stage; each fills one folder, within its share of the memory.

    cut      where the lines of a CSV file may be cut
    typed    a unit of raw rows -> chunks of typed rows; ids are codes: 1 + the position in the chunk's own sorted
             distinct values, which lie beside them; 0 is missing
    count    a chunk -> its rows' splits, and how often each of its distinct values occurs in train
    number   a range of the values of one table, over all chunks -> the values kept, numbered in their order,
             and for each chunk the numbers of its distinct values
    encode   a chunk -> its rows as they will be written, in the order of their splits (or of time)
    sort     a range of time, over all chunks -> its rows in order; only if the raw rows are not
    part     the rows of one file of the result -> that file
    vectors  a file of given vectors -> the rows of their table
    md5      a raw file -> its md5

No task looks a value up among all values kept: `number` sorts a range of them once, and hands every chunk the numbers
of its own distinct values. The ranges are quantiles of samples of all chunks' distinct values, so their size is known
however skewed the values are, and the order of the ids is that of the values.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from hashlib import file_digest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from cetnet.models.schema import Schema
from cetnet.trainer.data.hashing import mix64
from cetnet.trainer.prepare.engine.card import SplitStatistics
from cetnet.trainer.prepare.engine.chunks import BadValue, Format, Unit, frames, line_cuts
from cetnet.trainer.prepare.engine.layout import PartWriter, arrow_schema, check_table, list_column
from cetnet.trainer.prepare.engine.raw import Mistake, RawFeature, RawSchema, columns, hash_ids
from cetnet.trainer.prepare.engine.splits import Assign
from cetnet.trainer.prepare.engine.tasks import Plan, write_json
from cetnet.trainer.prepare.engine.vectors import open_vectors, write_vectors

Transform = Callable[[pl.DataFrame], pl.DataFrame]

GROUP = "#group"  # the group's values are numbered as if they were a table's
BATCH_ROWS = 16_384
ENTRY_BYTES = 150  # peak memory of `number` for a distinct value of a chunk, besides its text
SORT_FACTOR = 5  # peak memory of `sort` over the bytes of its rows
SAMPLES = 512  # of a range


@dataclass(frozen=True)
class Chunk:
    """Typed rows: their folder, file number, split (where files are given by split), and number of rows before."""

    path: Path
    file: int
    split: int | None
    first_row: int
    rows: int


def coded_columns(spec: RawSchema) -> dict[str, list[str]]:
    """Columns of the typed rows that hold codes, by the table (or GROUP) whose values they are."""
    coded = {table: [f.name for f in spec.features_of(table)] for table in spec.vocabulary_tables}
    group = spec.draft.group
    return coded | ({GROUP: [group]} if group is not None else {})


# ----------------------------------------------------------------------------------------------- cut, typed


def cut(folder: Path, path: Path, spec: RawSchema, plan: Plan) -> None:
    """facts.json: the offsets at which units of a CSV file start."""
    write_json(folder / "facts.json", line_cuts(path, plan.chunk_bytes, spec.quote))


def typed(
    folder: Path, unit: Unit, format: Format, spec: RawSchema, transform: Transform | None, plan: Plan
) -> None:
    """000000/rows.arrow and values.arrow (a batch a table) of each chunk; facts.json: a mapping for each chunk."""
    needed = None
    if transform is None:
        needed = [spec.label, spec.group, spec.timestamp, spec.weight, *(f.name for f in spec.features)]
    facts: list[dict[str, Any]] = []
    row = 0
    for frame in frames(
        unit, format, spec, plan.chunk_bytes, [name for name in needed or [] if name] or None
    ):
        height = frame.height
        if transform is not None:
            try:
                frame = transform(frame)
            except Mistake as error:
                raise BadValue(unit, error.column, row + error.row + 1, error.expected) from error
            assert frame.height == height, "a transform must keep the rows"
        chunk = folder / f"{len(facts):06d}"
        values = _checked(frame, unit, row, spec)
        if height:
            chunk.mkdir()
            facts.append(_write_typed(chunk, values, unit, row, spec, plan))
        row += height
    write_json(folder / "facts.json", facts)


def _checked(frame: pl.DataFrame, unit: Unit, row: int, spec: RawSchema) -> pl.DataFrame:
    """The typed values; BadValue for the first row with a mistake."""
    read = list(columns(unit.path, frame.schema, spec))
    checks = [
        column.bad.fill_null(True).arg_true().first().alias(column.name)
        for column in read
        if column.bad is not None
    ]
    first = frame.select(checks).row(0)
    names = [column for column in read if column.bad is not None]
    if bad := [(at, i) for i, at in enumerate(first) if at is not None]:
        at, i = min(bad)
        raise BadValue(unit, names[i].raw, row + at + 1, names[i].expected)
    return frame.select(column.value.alias(column.name) for column in read)


def _write_typed(
    folder: Path, values: pl.DataFrame, unit: Unit, row: int, spec: RawSchema, plan: Plan
) -> dict[str, Any]:
    offset = int(mix64(np.array([unit.file << 40 ^ unit.start + row], np.uint64))[0])
    every = max(1, plan.bucket_bytes // (ENTRY_BYTES * SAMPLES))
    tables: dict[str, dict[str, Any]] = {}
    integer_group = True
    with pa.ipc.new_file(folder / "values.arrow", _VALUES, options=_OPTIONS) as writer:
        for table, names in coded_columns(spec).items():
            distinct, codes = _code([values[name] for name in names])
            values = values.with_columns(codes)
            writer.write_batch(pa.record_batch([distinct.to_arrow().cast(pa.large_string())], _VALUES))
            samples = distinct.gather_every(every, offset % every).to_list()
            tables[table] = {
                "distinct": len(distinct),
                "bytes": int(distinct.str.len_bytes().sum()),
                "samples": samples,
            }
            if table == GROUP:
                integer_group = distinct.cast(pl.Int64, strict=False).null_count() == 0
    for feature in spec.features:
        if feature.hash is not None:
            values = values.with_columns(_hashed(values[feature.name], feature, unit, row))
    values.write_ipc(folder / "rows.arrow", compression="lz4")
    facts: dict[str, Any] = {
        "rows": values.height,
        "tables": tables,
        "integer_group": integer_group,
        "missing": {f.name: values[f.name].null_count() for f in spec.features if f.kind == "dense"},
        "bytes": int(values.estimated_size()),
        "lowest": _lowest(values, spec),
    }
    timestamp = spec.draft.timestamp
    if timestamp is not None:
        times = values[timestamp]
        every = max(1, plan.bucket_bytes // (SORT_FACTOR * SAMPLES * (1 + facts["bytes"] // values.height)))
        facts["times"] = {
            "first": times[0],
            "last": times[-1],
            "sorted": times.is_sorted(),
            "every": every,
            "samples": times.sort().gather_every(every, offset % every).to_list(),
        }
    return facts


def _lowest(values: pl.DataFrame, spec: RawSchema) -> float:
    """The lowest value of the features with the transform log_from_lowest; 0 without any."""
    names = [f.name for f in spec.features if f.transform == "log_from_lowest"]
    return min((float(values[name].fill_null(0).min()) for name in names), default=0.0)  # type: ignore[arg-type]


def _flat(series: pl.Series) -> tuple[pl.Series, np.ndarray | None]:
    """Values one after the other, and the lengths of the lists they are in, if any."""
    if not isinstance(series.dtype, pl.List):
        return series, None
    array = series.rechunk().to_arrow()
    return pl.Series(array.flatten()).cast(series.dtype.inner), np.diff(array.offsets.to_numpy())


def _shape(name: str, values: np.ndarray, lengths: np.ndarray | None) -> pl.Series:
    """The inverse of `_flat`."""
    return (pl.Series(values) if lengths is None else list_column(values, lengths)).alias(name)


def _code(texts: Sequence[pl.Series]) -> tuple[pl.Series, list[pl.Series]]:
    """The sorted distinct values of columns of text or of lists of it, and the columns as codes (uint32)."""
    flats = [_flat(series) for series in texts]
    joined = pl.concat([flat.alias("value") for flat, _ in flats], rechunk=True)
    encoded = joined.to_arrow().dictionary_encode()
    distinct = pl.Series("value", encoded.dictionary, dtype=pl.String)
    order = distinct.arg_sort().to_numpy()
    code_of = np.zeros(len(order) + 1, np.uint32)  # the last is that of null
    code_of[order] = np.arange(1, len(order) + 1, dtype=np.uint32)
    codes = code_of[encoded.indices.fill_null(len(order)).to_numpy()]
    parts = np.split(codes, np.cumsum([len(flat) for flat, _ in flats])[:-1])
    columns = [
        _shape(series.name, part, lengths)
        for series, part, (_, lengths) in zip(texts, parts, flats, strict=True)
    ]
    return distinct.gather(order), columns


def _hashed(texts: pl.Series, feature: RawFeature, unit: Unit, row: int) -> pl.Series:
    distinct, (codes,) = _code([texts])
    ids = np.concatenate([[0], hash_ids(distinct, feature)])
    flat, lengths = _flat(codes)
    hashed = ids[flat.to_numpy()]
    if (hashed < 0).any():
        at = int((hashed < 0).argmax())
        if lengths is not None:
            at = int(np.searchsorted(lengths.cumsum(), at, side="right"))
        raise BadValue(unit, feature.name, row + at + 1, "hexadecimal numbers of 32 bits")
    return _shape(texts.name, hashed, lengths)


# ------------------------------------------------------------------------------------------- count, number


def split_rows(chunk: Chunk, spec: RawSchema, wanted: Sequence[str] | None = None) -> pl.DataFrame:
    """The columns of a chunk that a split may read (see `Split.fit`); all, or the wanted ones."""
    schema = spec.draft
    names = {"#label": schema.label, GROUP: schema.group, "#timestamp": schema.timestamp}
    read = {
        key: name for key, name in names.items() if name is not None and (wanted is None or key in wanted)
    }
    rows = pl.int_range(chunk.first_row, chunk.first_row + chunk.rows, eager=True)
    frame = pl.DataFrame({"#row": rows}).with_columns(pl.lit(chunk.file, pl.Int32).alias("#file"))
    if read:
        columns = pl.read_ipc(chunk.path / "rows.arrow", columns=list(read.values()))
        frame = frame.hstack(columns.rename({v: k for k, v in read.items()}))
    if GROUP in read:
        values = pl.Series(
            _batch(chunk.path / "values.arrow", list(coded_columns(spec)).index(GROUP))["value"]
        )
        frame = frame.with_columns(values.gather(frame[GROUP] - 1).alias(GROUP))
    return frame


def count(
    folder: Path, chunk: Chunk, spec: RawSchema, assign: Assign | None, splitters: Mapping[str, Sequence[str]]
) -> None:
    """split.npy; entries.arrow (a batch a range of a table: distinct values, counts in train); facts.json."""
    if assign is None:
        split = np.full(chunk.rows, chunk.split, np.int8)
    else:
        split = assign(split_rows(chunk, spec)).to_numpy()
    np.save(folder / "split.npy", split)
    train = pl.Series(split == 0)
    rows = pl.read_ipc(chunk.path / "rows.arrow").filter(train)
    with pa.ipc.new_file(folder / "entries.arrow", _ENTRIES, options=_OPTIONS) as writer:
        for number, (table, names) in enumerate(coded_columns(spec).items()):
            values = pl.Series(_batch(chunk.path / "values.arrow", number)["value"])
            counts = np.zeros(len(values) + 1, np.int64)
            for name in names:
                counts += np.bincount(_flat(rows[name])[0].to_numpy(), minlength=len(counts))
            if table == GROUP:
                counts[:] = 1  # groups of all splits are numbered
            bounds = [
                0,
                *values.search_sorted(pl.Series(splitters[table], dtype=pl.String), "left"),
                len(values),
            ]
            batch = pa.record_batch([values.to_arrow().cast(pa.large_string()), counts[1:]], _ENTRIES)
            for first, last in itertools.pairwise(bounds):
                writer.write_batch(batch.slice(first, last - first))
    sums = {}
    for feature in spec.features:
        if feature.transform == "standardize":
            numbers = rows[feature.name].drop_nulls().to_numpy()
            powers = (_exact_sum(numbers), _exact_sum(numbers**2))
            sums[feature.name] = [len(numbers), *(total.as_integer_ratio() for total in powers)]
    write_json(folder / "facts.json", {"splits": np.bincount(split, minlength=3).tolist(), "sums": sums})


def _exact_sum(values: np.ndarray) -> Fraction:
    """The sum of float64 without rounding, so that it doesn't depend on how rows are cut into chunks."""
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    found, inverse = np.unique(exponents, return_inverse=True)
    # halves of 27 bits: their sums over up to 2**26 rows are exact in float64
    high = np.bincount(inverse, weights=whole >> 27, minlength=len(found))
    low = np.bincount(inverse, weights=whole & (2**27 - 1), minlength=len(found))
    sums = (
        (int(upper) * 2**27 + int(lower)) * Fraction(2) ** (int(e) - 53)
        for upper, lower, e in zip(high, low, found, strict=True)
    )
    return sum(sums, Fraction(0))


class Keys(NamedTuple):
    """The keys of given vectors that are in a range of values, [first, last)."""

    path: Path
    first: str | None
    last: str | None

    def read(self) -> pl.Series:
        """The keys, text in order."""
        keys = open_vectors(self.path).keys
        start = 0 if self.first is None else int(keys.search_sorted(self.first, "left"))
        stop = len(keys) if self.last is None else int(keys.search_sorted(self.last, "left"))
        return keys[start:stop]


def number(
    folder: Path, counted: Sequence[Path], batch: int, min_count: int, given: Keys | None = None
) -> None:
    """ids.arrow (a batch a chunk: 1 + the position of each of its values among those kept, or 0); facts.json.

    Kept are the given keys, or the values seen at least `min_count` times in train.
    """
    parts = [_batch(path / "entries.arrow", batch) for path in counted]
    entries = pl.DataFrame(pa.Table.from_batches(parts))
    lengths = [part.num_rows for part in parts]
    del parts
    if given is None:
        kept = entries.group_by("value").agg(pl.col("count").sum()).filter(pl.col("count") >= min_count)
        kept = kept.select("value").sort("value")
    else:
        kept = given.read().alias("value").to_frame()
    kept = kept.with_row_index("id", offset=1)
    ids = entries.select("value").join(kept, on="value", how="left", maintain_order="left")["id"]
    array = ids.fill_null(0).cast(pl.Int32).to_numpy()
    with pa.ipc.new_file(folder / "ids.arrow", _IDS, options=_OPTIONS) as writer:
        for part in np.split(array, np.cumsum(lengths)[:-1]):
            writer.write_batch(pa.record_batch([part], _IDS))
    of_number = {"kept": kept.height}
    if given is not None:
        distinct = entries.select("value").unique()
        common = distinct.join(kept, on="value", how="semi").height
        of_number |= {"without_key": distinct.height - common, "without_value": kept.height - common}
    write_json(folder / "facts.json", of_number)


# --------------------------------------------------------------------------------------- encode, sort, part


class Numbered(NamedTuple):
    """A range of a table's values: the folder of `number`, and how many are kept in the ranges before."""

    path: Path
    base: int


@dataclass(frozen=True)
class Encoding:
    """What `encode` needs beside the chunk.

    Attributes:
        schema: of the result.
        tables: the ranges of each table; without GROUP, groups are integers as they are.
        moments: mean and standard deviation of dense features to standardize.
        lowest: of each file, for the transform log_from_lowest.
        in_time_order: order rows by time, else by split.
        time_splitters: first times of all ranges but the first, if rows must be sorted over chunks.
    """

    schema: Schema
    tables: Mapping[str, Sequence[Numbered]]
    moments: Mapping[str, tuple[float, float]]
    lowest: Mapping[int, float]
    in_time_order: bool
    time_splitters: Sequence[int] | None


def encode(
    folder: Path, chunk: Chunk, index: int, counted: Path, spec: RawSchema, encoding: Encoding
) -> None:
    """rows.arrow, in batches of BATCH_ROWS, or one for each range of time."""
    rows = pl.read_ipc(chunk.path / "rows.arrow")
    for table_number, (table, names) in enumerate(coded_columns(spec).items()):
        if table in encoding.tables:
            ranges = [
                (_batch(numbered.path / "ids.arrow", index)["id"].to_numpy(), numbered.base)
                for numbered in encoding.tables[table]
            ]
            parts = [np.where(ids > 0, ids + np.int64(base), 0) for ids, base in ranges]
        else:
            texts = pl.Series(_batch(chunk.path / "values.arrow", table_number)["value"])
            parts = [texts.cast(pl.Int64).to_numpy()]
        id_of = np.concatenate([[0], *parts]).astype(np.int64)
        if encoding.schema.tables.get(table, 2**63) <= 2**31:
            id_of = id_of.astype(np.int32)
        for name in names:
            codes, lengths = _flat(rows[name])
            rows = rows.with_columns(_shape(name, id_of[codes.to_numpy()], lengths))
    lowest = encoding.lowest[chunk.file]
    rows = rows.with_columns(_dense(f, encoding.moments, lowest) for f in spec.features if f.kind == "dense")
    key = np.load(counted / "split.npy")
    if encoding.in_time_order:
        assert encoding.schema.timestamp is not None
        key = rows[encoding.schema.timestamp].to_numpy()
    if (np.diff(key) < 0).any():
        order = np.argsort(key, kind="stable")
        rows, key = rows[order], key[order]
    schema = arrow_schema(encoding.schema)
    table = rows.select(schema.names).to_arrow().cast(schema).combine_chunks()
    if encoding.time_splitters is None:
        with _RowWriter(folder / "rows.arrow", schema) as writer:
            writer.write(table)
        return
    bounds = [0, *np.searchsorted(key, encoding.time_splitters, side="left"), len(key)]
    with pa.ipc.new_file(folder / "rows.arrow", schema, options=_OPTIONS) as file:
        for first, last in itertools.pairwise(bounds):
            file.write_batch(_one_batch(table.slice(first, last - first)))
    write_json(folder / "facts.json", np.diff(bounds).tolist())


def _dense(feature: RawFeature, moments: Mapping[str, tuple[float, float]], lowest: float) -> pl.Expr:
    """Transformed, then without nulls."""
    value = pl.col(feature.name)
    if feature.transform == "log1p":
        value = value.sign() * value.abs().log1p()
    if feature.transform == "standardize":
        mean, deviation = moments[feature.name]
        value = (value - mean) / deviation
    if feature.transform == "log_from_lowest":
        value = (value.fill_null(0.0) - lowest + 2).log()
    return value.fill_null(0.0)


def sort(folder: Path, encoded: Sequence[Path], batch: int, schema: Schema, single: bool) -> None:
    """rows.arrow, in batches of BATCH_ROWS; rows of a `single` time are in order, and not held in memory."""
    columns = arrow_schema(schema)
    parts: Iterator[pa.RecordBatch] = (_batch(path / "rows.arrow", batch) for path in encoded)
    with _RowWriter(folder / "rows.arrow", columns) as writer:
        if single:
            for part in parts:
                writer.write(pa.Table.from_batches([part]))
        else:
            rows = pa.Table.from_batches(parts, columns)
            order = np.argsort(rows[schema.timestamp].to_numpy(), kind="stable")
            writer.write(rows.take(order))


class Slice(NamedTuple):
    """Rows [start, stop) of a folder's rows.arrow."""

    path: Path
    start: int
    stop: int


def part(folder: Path, slices: Sequence[Slice], schema: Schema) -> None:
    """part.parquet; facts.json: its statistics."""
    statistics = SplitStatistics()
    writer = PartWriter(folder / "part.parquet", arrow_schema(schema))
    for path, start, stop in slices:
        with pa.OSFile(str(path / "rows.arrow")) as source, pa.ipc.open_file(source) as file:
            for number in range(start // BATCH_ROWS, (stop - 1) // BATCH_ROWS + 1):
                first = number * BATCH_ROWS
                batch = file.get_batch(number)
                rows = batch.slice(
                    max(start - first, 0), min(stop - first, BATCH_ROWS) - max(start - first, 0)
                )
                table = pa.Table.from_batches([rows])
                check_table(table, schema)
                statistics.add(table, schema)
                writer.write(table)
    writer.close()
    write_json(folder / "facts.json", asdict(statistics))


def vectors(folder: Path, path: Path) -> None:
    """vectors.npy: the rows of a table of given vectors."""
    write_vectors(open_vectors(path), folder / "vectors.npy")


def md5(folder: Path, path: Path) -> None:
    """facts.json: the md5 of a file, hexadecimal."""
    with path.open("rb") as file:
        write_json(folder / "facts.json", file_digest(file, "md5").hexdigest())


# ---------------------------------------------------------------------------------------------------- files

_VALUES = pa.schema([("value", pa.large_string())])
_ENTRIES = pa.schema([("value", pa.large_string()), ("count", pa.int64())])
_IDS = pa.schema([("id", pa.int32())])
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


def facts(folder: Path) -> Any:
    """What a task says of its output."""
    return json.loads((folder / "facts.json").read_text())


def _batch(path: Path, number: int) -> pa.RecordBatch:
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        return file.get_batch(number)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


class _RowWriter:
    """An Arrow file in batches of exactly BATCH_ROWS rows (but the last), so that a row's batch is known."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pa.ipc.new_file(path, schema, options=_OPTIONS)
        self._pending = schema.empty_table()

    def write(self, table: pa.Table) -> None:
        table = pa.concat_tables([self._pending, table]) if self._pending.num_rows else table
        whole = table.num_rows // BATCH_ROWS * BATCH_ROWS
        for start in range(0, whole, BATCH_ROWS):
            self._file.write_batch(_one_batch(table.slice(start, BATCH_ROWS)))
        self._pending = table.slice(whole)

    def __enter__(self) -> "_RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending.num_rows:
            self._file.write_batch(_one_batch(self._pending))
        self._file.close()
