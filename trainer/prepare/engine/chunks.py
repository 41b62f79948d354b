"""Raw files in pieces that one task reads within its memory: `units` of a file, and the `frames` of a unit."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.trainer.data.data_files import Format, KeyValues, check_keys
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.csv_frames import csv_frames, csv_units
from cetnet.trainer.prepare.engine.parquet_frames import parquet_frames, parquet_units, raw_uses
from cetnet.trainer.prepare.engine.raw import RawSchema, check_columns
from cetnet.trainer.prepare.engine.tasks import Unfinished
from cetnet.trainer.prepare.engine.units import Unit

_UNREADABLE = (pl.exceptions.PolarsError, pa.ArrowException, OSError, EOFError)


def units(
    path: Path,
    file: int,
    split: int | None,
    format: Format,
    spec: RawSchema,
    cuts: Sequence[int],
    chunk_bytes: int,
    keys: KeyValues,
    *,
    named: bool,
) -> list[Unit]:
    """The units of a file, in its order; UserError if it can't be read or lacks a column that the schema names.

    `cuts` are `line_cuts` of a CSV file that is not a stream, `keys` what the file's directories give all its rows;
    `named`: the schema's columns are the file's own, not a transform's.
    """
    try:
        if format == "parquet":
            found = parquet_units(path, file, split, chunk_bytes, raw_uses(spec) if named else (), keys)
        else:
            found = csv_units(path, file, split, spec, cuts)
            check_keys(path, found[0].columns, keys)
            if named:
                check_columns(path, [*found[0].columns, *keys], spec)
        return [replace(unit, keys=tuple(keys.items())) for unit in found]
    except _UNREADABLE as error:
        raise _unreadable(path, format, error) from error


def column_names(path: Path, format: Format, spec: RawSchema) -> list[str]:
    """The columns of a file, in its order; UserError if it can't be read."""
    try:
        if format == "parquet":
            return list(pq.read_schema(path).names)
        return list(csv_units(path, 0, None, spec, [])[0].columns)
    except _UNREADABLE as error:
        raise _unreadable(path, format, error) from error


def frames(
    unit: Unit, format: Format, spec: RawSchema, chunk_bytes: int, *, named: bool
) -> Iterator[pl.DataFrame]:
    """The rows of a unit, about `chunk_bytes` at a time: CSV as text, of Parquet the columns that the schema names.

    If these are a transform's (not `named`), all columns as they are.
    """
    try:
        if format == "parquet":
            read = parquet_frames(unit, chunk_bytes, raw_uses(spec) if named else None)
        else:
            read = csv_frames(unit, spec, chunk_bytes)
        for frame in read:
            yield frame.with_columns(pl.lit(value, pl.String).alias(key) for key, value in unit.keys)
    except _UNREADABLE as error:
        raise _unreadable(unit.path, format, error) from error


def _unreadable(path: Path, format: Format, error: BaseException) -> UserError:
    if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the content
        return Unfinished(
            f"cannot read {path}: {os.strerror(error.errno)}; fix it, and the same command goes on"
        )
    return UserError(
        f"{path} is not readable as {format}: {(str(error) or type(error).__name__).splitlines()[0]}"
    )
