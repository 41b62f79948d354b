"""Raw files in pieces that one task reads within its memory: `units` of a file, and the `frames` of a unit."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.csv_frames import csv_frames, csv_units
from cetnet.trainer.prepare.engine.parquet_frames import parquet_frames, parquet_units
from cetnet.trainer.prepare.engine.raw import RawSchema, check_columns
from cetnet.trainer.prepare.engine.tasks import Unfinished
from cetnet.trainer.prepare.engine.units import Format, Unit

_UNREADABLE = (pl.exceptions.PolarsError, pa.ArrowException, OSError, EOFError)


def units(
    path: Path,
    file: int,
    split: int | None,
    format: Format,
    spec: RawSchema,
    cuts: Sequence[int],
    chunk_bytes: int,
) -> list[Unit]:
    """The units of a file, in its order; `cuts` are `line_cuts` of a CSV file that is not a stream."""
    try:
        if format == "parquet":
            return parquet_units(path, file, split, chunk_bytes)
        return csv_units(path, file, split, spec, cuts)
    except _UNREADABLE as error:
        raise _unreadable(path, format, error) from error


def check_file(path: Path, format: Format, spec: RawSchema) -> None:
    """UserError if a file can't be read or lacks a column that the schema names."""
    try:
        if format == "parquet":
            check_columns(path, pq.read_schema(path).names, spec)
        else:
            check_columns(path, csv_units(path, 0, None, spec, [])[0].columns, spec)
    except _UNREADABLE as error:
        raise _unreadable(path, format, error) from error


def frames(
    unit: Unit, format: Format, spec: RawSchema, chunk_bytes: int, needed: Sequence[str] | None
) -> Iterator[pl.DataFrame]:
    """The rows of a unit, about `chunk_bytes` at a time: CSV as text, of Parquet the `needed` columns."""
    try:
        if format == "parquet":
            yield from parquet_frames(unit, chunk_bytes, needed)
        else:
            yield from csv_frames(unit, spec, chunk_bytes)
    except _UNREADABLE as error:
        raise _unreadable(unit.path, format, error) from error


def _unreadable(path: Path, format: Format, error: BaseException) -> UserError:
    if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the content
        return Unfinished(f"cannot read {path}: {error.strerror}; fix it, and the same command goes on")
    return UserError(
        f"{path} is not readable as {format}: {(str(error) or type(error).__name__).splitlines()[0]}"
    )
