"""Raw files in pieces that one task reads within its memory: `units` of a file, and the `frames` of a unit."""

import gzip
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.tasks import Unfinished

Format = Literal["csv", "parquet"]


@dataclass(frozen=True)
class Unit:
    """What one task reads: bytes of a CSV file (all of a gz file), or row groups of a Parquet file.

    Attributes:
        path: the file.
        file: its number among all files.
        split: index into SPLITS, where files are given by split.
        start, stop: of bytes, or of row groups.
        size: bytes, for progress.
        columns: names of the columns of CSV.
    """

    path: Path
    file: int
    split: int | None
    start: int
    stop: int
    size: int
    columns: tuple[str, ...] = ()


class BadValue(UserError):
    """A value that is not what the schema says. Args: unit, column, row (from 1, of the unit), expected."""

    def __str__(self) -> str:
        unit, column, row, expected = self.args
        return f"{unit.path}: column {column!r}, row {row}: expected {expected}"


def is_compressed(path: Path) -> bool:
    """Whether a CSV file can only be read from its start."""
    return path.suffix == ".gz"


def units(
    path: Path,
    file: int,
    split: int | None,
    format: Format,
    spec: RawSchema,
    cuts: Sequence[int],
    chunk_bytes: int,
) -> list[Unit]:
    """The units of a file, in its order; `cuts` are `line_cuts` of a CSV file that is not compressed."""
    try:
        if format == "parquet":
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
                Unit(path, file, split, group[0], group[-1] + 1, sum(sizes[i] for i in group))
                for group in groups
            ] or [Unit(path, file, split, 0, 0, 1)]
        columns, start = _header(path, spec)
        if is_compressed(path):
            return [Unit(path, file, split, start, 0, path.stat().st_size, columns)]
        bounds = [start, *(cut for cut in cuts if cut > start), path.stat().st_size]
        return [
            Unit(path, file, split, first, last, last - first, columns)
            for first, last in itertools.pairwise(bounds)
        ]
    except _UNREADABLE as error:
        raise _unreadable(path, format, error) from error


_UNREADABLE = (pl.exceptions.PolarsError, pa.ArrowException, OSError, EOFError)


def _unreadable(path: Path, format: Format, error: BaseException) -> UserError:
    if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the content
        return Unfinished(f"cannot read {path}: {error.strerror}; fix it, and the same command goes on")
    return UserError(
        f"{path} is not readable as {format}: {(str(error) or type(error).__name__).splitlines()[0]}"
    )


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if is_compressed(path) else path.open("rb")  # type: ignore[return-value]


def _header(path: Path, spec: RawSchema) -> tuple[tuple[str, ...], int]:
    """The columns of a CSV file, and where its rows start."""
    with _open(path) as file:
        line = file.readline(10_000_000)
    first = pl.read_csv(
        line,
        separator=spec.delimiter,
        quote_char=spec.quote,
        has_header=spec.header is None,
        new_columns=list(spec.header) if spec.header else None,
        infer_schema=False,
    )
    return tuple(first.columns), len(line) if spec.header is None else 0


def line_cuts(path: Path, chunk_bytes: int, quote: str | None) -> list[int]:
    """Offsets of line starts about `chunk_bytes` apart, none of them inside quotes.

    Reads the whole file where there may be quotes: an even number of them lies before a line's end (quotes inside
    quotes are doubled). A line longer than a chunk is a UserError.
    """
    cuts: list[int] = []
    with path.open("rb") as file:
        if quote is None:
            size = path.stat().st_size
            for offset in range(chunk_bytes, size, chunk_bytes):
                file.seek(offset - 1)
                _check_line(path, len(file.readline(chunk_bytes)), chunk_bytes)
                if not cuts or file.tell() > cuts[-1]:
                    cuts.append(file.tell())
            return [cut for cut in cuts if cut < size]
        mark, offset, odd = quote.encode(), 0, 0
        while block := file.read(chunk_bytes):
            if offset:
                end = _line_end(block, mark, odd)
                _check_line(path, len(block) if end < 0 else end, chunk_bytes)
                cuts.append(offset + end + 1)
            odd ^= block.count(mark) & 1
            offset += len(block)
    return [cut for cut in cuts if cut < offset]


def _line_end(block: bytes, mark: bytes, odd: int) -> int:
    """The first end of a line outside quotes, -1 if there is none; `odd`: the block starts inside quotes."""
    end, counted = block.find(b"\n"), 0
    while end >= 0:
        odd ^= block.count(mark, counted, end) & 1
        if not odd:
            return end
        counted, end = end, block.find(b"\n", end + 1)
    return -1


def _check_line(path: Path, length: int, chunk_bytes: int) -> None:
    if length >= chunk_bytes:
        raise UserError(
            f"{path}: a line is longer than {chunk_bytes:,} bytes: if a quote is not closed, set `quote` in the "
            "schema (null: no quotes); else give more --memory"
        )


def frames(
    unit: Unit, format: Format, spec: RawSchema, chunk_bytes: int, needed: Sequence[str] | None
) -> Iterator[pl.DataFrame]:
    """The rows of a unit, about `chunk_bytes` at a time: CSV as text, of Parquet the `needed` columns."""
    try:
        if format == "parquet":
            yield from _parquet_frames(unit, chunk_bytes, needed)
            return
        delimiter = spec.delimiter.encode()
        blocks = _gz_blocks(unit, chunk_bytes, spec.quote) if is_compressed(unit.path) else _block(unit)
        row = 0
        for block in blocks:
            if not block:  # nothing but the header
                yield pl.DataFrame(schema=dict.fromkeys(unit.columns, pl.String))
                continue
            if spec.quote is None and block.count(delimiter) != _lines(block) * (len(unit.columns) - 1):
                _check_columns(block, unit, row, delimiter)
            try:
                frame = pl.read_csv(
                    block,
                    separator=spec.delimiter,
                    quote_char=spec.quote,
                    has_header=False,
                    # every value is read as text, so that a mistake can be named with its row
                    schema=dict.fromkeys(unit.columns, pl.String),
                )
            except pl.exceptions.PolarsError:
                if spec.quote is None:  # a line too long and one too short have the right number together
                    _check_columns(block, unit, row, delimiter)
                raise
            row += frame.height
            yield frame
    except _UNREADABLE as error:
        raise _unreadable(unit.path, format, error) from error


def _lines(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _check_columns(block: bytes, unit: Unit, row: int, delimiter: bytes) -> None:
    """BadValue for the first line of more or fewer columns than the unit has: polars fills up short lines."""
    wanted = len(unit.columns)
    for number, line in enumerate(block.splitlines(), row + 1):
        if (found := 1 + line.count(delimiter)) != wanted:
            column = unit.columns[min(found, wanted) - 1]
            raise BadValue(unit, column, number, f"{wanted} columns, and the line has {found}")


def _parquet_frames(unit: Unit, chunk_bytes: int, needed: Sequence[str] | None) -> Iterator[pl.DataFrame]:
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


def _block(unit: Unit) -> Iterator[bytes]:
    with unit.path.open("rb") as file:
        file.seek(unit.start)
        yield file.read(unit.stop - unit.start)


def _gz_blocks(unit: Unit, chunk_bytes: int, quote: str | None) -> Iterator[bytes]:
    """Blocks of whole lines, about `chunk_bytes` long."""
    mark = (quote or "").encode()
    with gzip.open(unit.path) as file:
        file.seek(unit.start)
        rest = b""
        while block := file.read(chunk_bytes):
            block = rest + block
            end = block.rfind(b"\n")
            while mark and end >= 0 and block.count(mark, 0, end) % 2:
                end = block.rfind(b"\n", 0, end)
            _check_line(
                unit.path, 2 * chunk_bytes if end < 0 and len(block) > chunk_bytes else 0, chunk_bytes
            )
            rest = block[end + 1 :]
            if end >= 0:
                yield block[: end + 1]
        if rest:
            yield rest
