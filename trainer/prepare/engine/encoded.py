"""Chunks of typed rows and the numbers of their values -> rows as they will be written -> the files of the result."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from cetnet.models.schema import Schema
from cetnet.trainer.prepare.engine.arrow_files import (
    BATCH_ROWS,
    IPC_OPTIONS,
    RowWriter,
    one_batch,
    read_batch,
)
from cetnet.trainer.prepare.engine.layout import arrow_schema, check_table
from cetnet.trainer.prepare.engine.part_files import ROWS_PER_FILE, PartWriter
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.statistics import Measure, SplitStatistics
from cetnet.trainer.prepare.engine.tasks import write_facts
from cetnet.trainer.prepare.engine.typed import GROUP, Chunk, coded_columns, flatten, unflatten


class Numbered(NamedTuple):
    """A range of a table's values: the folder of `number_values`, and the last id before those that it keeps."""

    path: Path
    base: int


@dataclass(frozen=True)
class Encoding:
    """What `encode_rows` needs beside the chunk.

    Attributes:
        schema: of the result.
        tables: the ranges of each table; without GROUP, groups are integers as they are. A missing one is null.
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


def encode_rows(
    folder: Path, chunk: Chunk, index: int, counted: Path, spec: RawSchema, encoding: Encoding
) -> None:
    """rows.arrow, in batches of BATCH_ROWS, or one for each range of time."""
    rows = chunk.read()
    for table_number, (table, names) in enumerate(coded_columns(spec).items()):
        if table in encoding.tables:
            ranges = [
                (read_batch(numbered.path / "ids.arrow", index)["id"].to_numpy(), numbered.base)
                for numbered in encoding.tables[table]
            ]
            parts = [np.where(ids < 0, base - ids, ids) for ids, base in ranges]
        else:
            texts = chunk.values(table_number)
            parts = [texts.cast(pl.Int64).to_numpy()]
        id_of = np.concatenate([[0], *parts]).astype(np.int64)
        if encoding.schema.tables.get(table, 2**63) <= 2**31:
            id_of = id_of.astype(np.int32)
        for name in names:
            codes, lengths = flatten(rows[name])
            ids = unflatten(name, id_of[codes.to_numpy()], lengths)
            rows = rows.with_columns(ids.set(codes == 0, None) if table == GROUP else ids)
    lowest = encoding.lowest[chunk.file]
    rows = rows.with_columns(
        dense_values(f, encoding.moments, lowest) for f in spec.features if f.kind == "dense"
    )
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
        with RowWriter(folder / "rows.arrow", schema) as writer:
            writer.write(table)
        return
    bounds = [0, *np.searchsorted(key, encoding.time_splitters, side="left"), len(key)]
    with pa.ipc.new_file(folder / "rows.arrow", schema, options=IPC_OPTIONS) as file:
        for first, last in itertools.pairwise(bounds):
            file.write_batch(one_batch(table.slice(first, last - first)))
    write_facts(folder, np.diff(bounds).tolist())


def dense_values(feature: RawFeature, moments: Mapping[str, tuple[float, float]], lowest: float) -> pl.Expr:
    """Transformed, then without nulls."""
    value = pl.col(feature.name)
    if feature.transform == "log1p":
        value = value.sign() * value.abs().log1p()
    if feature.transform == "standardize":
        mean, deviation = moments[feature.name]
        value = (value - mean) / deviation
    if feature.transform == "log_from_lowest":
        value = (value.fill_null(0.0).clip(lower_bound=lowest) - lowest + 2).log()
    return value.fill_null(0.0)


def sort_rows(folder: Path, encoded: Sequence[Path], batch: int, schema: Schema, single: bool) -> None:
    """rows.arrow, in batches of BATCH_ROWS; rows of a `single` time are in order, and not held in memory."""
    columns = arrow_schema(schema)
    parts: Iterator[pa.RecordBatch] = (read_batch(path / "rows.arrow", batch) for path in encoded)
    with RowWriter(folder / "rows.arrow", columns) as writer:
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


def parts(slices: Sequence[Slice]) -> Iterator[list[Slice]]:
    """The rows of each file of a split."""
    part: list[Slice] = []
    room = ROWS_PER_FILE
    for path, start, stop in slices:
        while start < stop:
            rows = min(room, stop - start)
            part.append(Slice(path, start, start + rows))
            start, room = start + rows, room - rows
            if not room:
                yield part
                part, room = [], ROWS_PER_FILE
    if part:
        yield part


def write_part(folder: Path, slices: Sequence[Slice], measure: Measure) -> None:
    """part.parquet; facts.json: its statistics."""
    statistics = SplitStatistics()
    columns = arrow_schema(measure.schema, measure.labelled)
    writer = PartWriter(folder / "part.parquet", columns, partial(statistics.add, measure))
    for path, start, stop in slices:
        with pa.OSFile(str(path / "rows.arrow")) as source, pa.ipc.open_file(source) as file:
            for number in range(start // BATCH_ROWS, (stop - 1) // BATCH_ROWS + 1):
                first = number * BATCH_ROWS
                batch = file.get_batch(number)
                rows = batch.slice(
                    max(start - first, 0), min(stop - first, BATCH_ROWS) - max(start - first, 0)
                )
                table = pa.Table.from_batches([rows]).select(columns.names)
                check_table(table, measure.schema)
                writer.write(table)
    writer.close()
    write_facts(folder, asdict(statistics))
