"""Raw Parquet files: row groups that one task reads, and their rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from cetnet.trainer.prepare.engine.units import Unit


def parquet_units(path: Path, file: int, split: int | None, chunk_bytes: int) -> list[Unit]:
    """The units of a file, in its order: row groups of about `chunk_bytes` together."""
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    groups: list[list[int]] = []
    for number, size in enumerate(sizes):
        if groups and sum(sizes[i] for i in groups[-1]) + size <= chunk_bytes:
            groups[-1].append(number)
        else:
            groups.append([number])
    # a file without rows is still a unit, whose columns are checked
    return [
        Unit(path, file, split, group[0], group[-1] + 1, sum(sizes[i] for i in group)) for group in groups
    ] or [Unit(path, file, split, 0, 0, 1)]


def parquet_frames(unit: Unit, chunk_bytes: int, needed: Sequence[str] | None) -> Iterator[pl.DataFrame]:
    """The rows of a unit, about `chunk_bytes` at a time: the `needed` columns, or all."""
    with pq.ParquetFile(unit.path, pre_buffer=False) as file:
        groups = range(unit.start, unit.stop)
        rows = sum(file.metadata.row_group(i).num_rows for i in groups)
        columns = [name for name in file.schema_arrow.names if needed is None or name in needed]
        if not rows:
            yield pl.DataFrame(file.schema_arrow.empty_table().select(columns))
            return
        batch_rows = max(1, min(rows, rows * chunk_bytes // max(1, unit.size)))
        for batch in file.iter_batches(batch_rows, groups, columns, use_threads=False):
            yield pl.DataFrame(batch)
