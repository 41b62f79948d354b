"""Raw CSV files: pieces of whole lines that one task reads, and their rows as text."""

import gzip
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import polars as pl

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.units import BadValue, Unit


def is_compressed(path: Path) -> bool:
    """Whether a CSV file can only be read from its start."""
    return path.suffix == ".gz"


def csv_units(path: Path, file: int, split: int | None, spec: RawSchema, cuts: Sequence[int]) -> list[Unit]:
    """The units of a file, in its order; `cuts` are its `line_cuts`, unless it is compressed."""
    columns, start = _header(path, spec)
    if is_compressed(path):
        return [Unit(path, file, split, start, 0, path.stat().st_size, columns)]
    bounds = [start, *(cut for cut in cuts if cut > start), path.stat().st_size]
    return [
        Unit(path, file, split, first, last, last - first, columns)
        for first, last in itertools.pairwise(bounds)
    ]


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


def csv_frames(unit: Unit, spec: RawSchema, chunk_bytes: int) -> Iterator[pl.DataFrame]:
    """The rows of a unit, about `chunk_bytes` at a time, as text."""
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


def _lines(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _check_columns(block: bytes, unit: Unit, row: int, delimiter: bytes) -> None:
    """BadValue for the first line of more or fewer columns than the unit has: polars fills up short lines."""
    wanted = len(unit.columns)
    for number, line in enumerate(block.splitlines(), row + 1):
        if (found := 1 + line.count(delimiter)) != wanted:
            column = unit.columns[min(found, wanted) - 1]
            raise BadValue(unit, column, number, f"{wanted} columns, and the line has {found}")


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
