"""Units of raw rows -> chunks of typed rows, whose ids are codes of each chunk's own values.

A code is 1 + the position in the chunk's sorted distinct values of the table, which lie beside the rows; 0 stands for
missing values.
"""

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from cetnet.trainer.data.data_files import Format
from cetnet.trainer.encoder.hashing import mix64
from cetnet.trainer.prepare.engine.arrow_files import IPC_OPTIONS, read_batch
from cetnet.trainer.prepare.engine.chunks import frames
from cetnet.trainer.prepare.engine.csv_frames import line_cuts
from cetnet.trainer.prepare.engine.layout import list_column
from cetnet.trainer.prepare.engine.raw import Mistake, RawFeature, RawSchema, columns, hash_ids
from cetnet.trainer.prepare.engine.tasks import TaskSizes, write_facts
from cetnet.trainer.prepare.engine.units import BadValue, Unit
from cetnet.trainer.prepare.engine.values import canonical_integers, forms

Transform = Callable[[pl.DataFrame], pl.DataFrame]

GROUP = "#group"  # the group's values are numbered as if they were a table's
ENTRY_BYTES = 150  # peak memory of `number_values` for a distinct value of a chunk, besides its text
SORT_FACTOR = 5  # peak memory of `sort_rows` over the bytes of its rows
SAMPLES = 512  # of a range
VALUES = pa.schema([("value", pa.large_string())])


@dataclass(frozen=True)
class Chunk:
    """Typed rows: their folder, file number, split (where files are given by split), and number of rows before."""

    path: Path
    file: int
    split: int | None
    first_row: int
    rows: int

    def read(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The typed rows, or these columns of them."""
        frame = pl.scan_ipc(self.path / "rows.arrow", glob=False)  # a folder's name may hold a * or a [
        return (frame if columns is None else frame.select(columns)).collect()

    def values(self, number: int) -> pl.Series:
        """The sorted distinct values that codes stand for, of a table by its place in `coded_columns`."""
        return pl.Series(read_batch(self.path / "values.arrow", number)["value"])


def coded_columns(spec: RawSchema) -> dict[str, list[str]]:
    """Columns of the typed rows that hold codes, by the table (or GROUP) whose values they are."""
    coded = {table: [f.name for f in spec.features_of(table)] for table in spec.vocabulary_tables}
    group = spec.draft.group
    return coded | ({GROUP: [group]} if group is not None else {})


def find_cuts(folder: Path, path: Path, spec: RawSchema, sizes: TaskSizes) -> None:
    """facts.json: the offsets at which units of a CSV file start."""
    write_facts(folder, line_cuts(path, sizes.chunk_bytes, spec))


def type_rows(
    folder: Path,
    unit: Unit,
    format: Format,
    spec: RawSchema,
    transform: Transform | None,
    sizes: TaskSizes,
    trained: bool,
) -> None:
    """000000/rows.arrow and values.arrow (a batch a table) of each chunk; facts.json: a mapping for each chunk.

    `trained`: the tables are those of a model, so ids beyond one with given rows are unknown, and no mistake.
    """
    facts: list[dict[str, Any]] = []
    row = 0
    for frame in frames(unit, format, spec, sizes.chunk_bytes, named=transform is None):
        height = frame.height
        if transform is not None:
            try:
                frame = transform(frame)
            except Mistake as error:
                raise BadValue(unit, error.column, row + error.row + 1, error.expected) from error
            assert frame.height == height, "a transform must keep the rows"
        chunk = folder / f"{len(facts):06d}"
        values = checked_values(frame, unit, row, spec, trained)
        if height:
            chunk.mkdir()
            facts.append(_write_chunk(chunk, values, unit, row, spec, sizes))
        row += height
    write_facts(folder, facts)


def checked_values(frame: pl.DataFrame, unit: Unit, row: int, spec: RawSchema, trained: bool) -> pl.DataFrame:
    """The typed values; BadValue for the first row with a mistake."""
    read = list(columns(unit.path, frame.schema, spec, trained))
    checks = [(column, check) for column in read for check in column.checks]
    bad = (check.bad.fill_null(True).arg_true().first() for _, check in checks)
    first = frame.select(expr.alias(str(i)) for i, expr in enumerate(bad)).row(0)
    if found := [(at, i) for i, at in enumerate(first) if at is not None]:
        at, i = min(found)
        column, check = checks[i]
        value = frame[column.raw][at]
        value = "nothing" if value is None else reprlib.repr(value)
        raise BadValue(unit, column.raw, row + at + 1, f"{check.expected}, found {value}")
    return frame.select(column.value.alias(column.name) for column in read)


def _write_chunk(
    folder: Path, values: pl.DataFrame, unit: Unit, row: int, spec: RawSchema, sizes: TaskSizes
) -> dict[str, Any]:
    offset = int(mix64(np.array([unit.file << 40 ^ unit.start + row], np.uint64))[0])
    every = max(1, sizes.bucket_bytes // (ENTRY_BYTES * SAMPLES))
    tables: dict[str, dict[str, Any]] = {}
    written: dict[str, dict[str, dict[str, str]]] = {}  # of table and raw column, `forms`
    integer_group, without_group = True, pl.Series(dtype=pl.UInt32)
    with pa.ipc.new_file(folder / "values.arrow", VALUES, options=IPC_OPTIONS) as writer:
        for table, names in coded_columns(spec).items():
            distinct, codes = _code([values[name] for name in names])
            values = values.with_columns(codes)
            writer.write_batch(pa.record_batch([distinct.to_arrow().cast(pa.large_string())], VALUES))
            samples = distinct.gather_every(every, offset % every).to_list()
            tables[table] = {
                "distinct": len(distinct),
                "bytes": int(distinct.str.len_bytes().sum()),
                "samples": samples,
            }
            if table == GROUP:
                integer_group = canonical_integers(distinct).null_count() == 0
                without_group = (codes[0] == 0).arg_true()
            raw = [f.raw for f in spec.features_of(table)] if table != GROUP else [spec.group or ""]
            written[table] = {
                name: forms(distinct, flatten(of)[0].to_numpy() if len(codes) > 1 else None)
                for name, of in zip(raw, codes, strict=True)
            }
    for feature in spec.features:
        if feature.hash is not None:
            hashed, of_feature = _hashed(values[feature.name], feature, unit, row)
            values = values.with_columns(hashed)
            written.setdefault(feature.table or feature.name, {})[feature.raw] = of_feature
    labels = values[spec.label]
    values = values.with_columns(labels.clip(lower_bound=0))
    values.write_ipc(folder / "rows.arrow", compression="lz4")
    facts: dict[str, Any] = {
        "rows": values.height,
        "tables": tables,
        "integer_group": integer_group,
        "without_group": {"rows": len(without_group), "first": without_group.first()},
        "forms": written,
        "labels": {str(label): (labels == label).arg_true().first() for label in (-1, 0)},
        "missing": {f.name: values[f.name].null_count() for f in spec.features if f.kind == "dense"},
        "bytes": int(values.estimated_size()),
        "lowest": _lowest(values, spec),
    }
    timestamp = spec.draft.timestamp
    if timestamp is not None:
        times = values[timestamp]
        every = max(1, sizes.bucket_bytes // (SORT_FACTOR * SAMPLES * (1 + facts["bytes"] // values.height)))
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


def flatten(series: pl.Series) -> tuple[pl.Series, np.ndarray | None]:
    """Values one after the other, and the lengths of the lists they are in, if any."""
    if not isinstance(series.dtype, pl.List):
        return series, None
    array = series.rechunk().to_arrow()
    return pl.Series(array.flatten()).cast(series.dtype.inner), np.diff(array.offsets.to_numpy())


def unflatten(name: str, values: np.ndarray, lengths: np.ndarray | None) -> pl.Series:
    """The inverse of `flatten`: values in a column, in lists of these lengths if there are any."""
    return (pl.Series(values) if lengths is None else list_column(values, lengths)).alias(name)


def _code(texts: Sequence[pl.Series]) -> tuple[pl.Series, list[pl.Series]]:
    """The sorted distinct values of columns of text or of lists of it, and the columns as codes (uint32)."""
    flats = [flatten(series) for series in texts]
    joined = pl.concat([flat.alias("value") for flat, _ in flats], rechunk=True)
    encoded = joined.to_arrow().dictionary_encode()
    distinct = pl.Series("value", encoded.dictionary, dtype=pl.String)
    order = distinct.arg_sort().to_numpy()
    code_of = np.zeros(len(order) + 1, np.uint32)  # the last is that of null
    code_of[order] = np.arange(1, len(order) + 1, dtype=np.uint32)
    codes = code_of[encoded.indices.fill_null(len(order)).to_numpy()]
    parts = np.split(codes, np.cumsum([len(flat) for flat, _ in flats])[:-1])
    columns = [
        unflatten(series.name, part, lengths)
        for series, part, (_, lengths) in zip(texts, parts, flats, strict=True)
    ]
    return distinct.gather(order), columns


def _hashed(texts: pl.Series, feature: RawFeature, unit: Unit, row: int) -> tuple[pl.Series, dict[str, str]]:
    """The hashes, and the `forms` of the texts."""
    distinct, (codes,) = _code([texts])
    ids = np.concatenate([[0], hash_ids(distinct, feature)])
    flat, lengths = flatten(codes)
    hashed = ids[flat.to_numpy()]
    if (hashed < 0).any():
        at = int((hashed < 0).argmax())
        if lengths is not None:
            at = int(np.searchsorted(lengths.cumsum(), at, side="right"))
        raise BadValue(unit, feature.raw, row + at + 1, "hexadecimal numbers of 32 bits")
    return unflatten(texts.name, hashed, lengths), forms(distinct)
