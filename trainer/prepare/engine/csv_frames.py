"""Raw CSV files: pieces of whole rows that one task reads, and their rows as text."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import polars as pl

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.csv_grammar import Problem, doubled, parse, plain_rows, rows_end, unescaped
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.text_streams import Damaged, Utf8Stream, is_stream, mark_bytes, open_text
from cetnet.trainer.prepare.engine.units import BadRow, Unit

_PIECE = 1_000_000  # bytes that are read value by value at a time
_LONGEST_ROW = 1_000_000  # bytes that a row may have, however small the chunks are
_LONGEST_HEADER = 10_000_000


def csv_units(path: Path, file: int, split: int | None, spec: RawSchema, cuts: Sequence[int]) -> list[Unit]:
    """The units of a file, in its order; `cuts` are its `line_cuts`, unless it is a stream."""
    columns, start = _header(path, spec)
    if is_stream(path, spec.encoding):
        return [Unit(path, file, split, start, 0, path.stat().st_size, columns)]
    bounds = [start, *(cut for cut in cuts if cut > start), path.stat().st_size]
    return [
        Unit(path, file, split, first, last, last - first, columns)
        for first, last in itertools.pairwise(bounds)
    ]


def _header(path: Path, spec: RawSchema) -> tuple[tuple[str, ...], int]:
    """The columns of a CSV file, and where its rows start."""
    mark = _mark(path, spec)
    if spec.header is not None:
        return _unique(spec.header, path, spec), mark
    try:
        with open_text(path, spec.encoding) as file:
            head = file.read(1 << 16)
            while not (whole := rows_end(head, spec)) and len(head) <= _LONGEST_HEADER:
                if not (more := file.read(1 << 20)):
                    break
                head += more
    except Damaged as error:
        raise UserError(f"{path}: the header: {error}") from error
    text, bad = _decoded(head[: whole or None], spec)
    rows, end, problem = parse(text, spec, first=True)
    if not rows and problem is None:
        problem = bad
    if problem is not None:
        raise UserError(f"{path}: the header: {problem.what}")
    if not whole and len(head) > _LONGEST_HEADER:
        raise UserError(f"{path}: the header is longer than {_LONGEST_HEADER:,} bytes: is this a CSV file?")
    if not rows:
        raise UserError(f"{path} is empty, without even a header: write it again, or remove it")
    return _unique([name or "" for name in rows[0]], path, spec), mark + len(text[:end].encode())


def _mark(path: Path, spec: RawSchema) -> int:
    return 0 if is_stream(path, spec.encoding) else mark_bytes(path)


def _unique(names: Sequence[str], path: Path, spec: RawSchema) -> tuple[str, ...]:
    """Names of columns, other ones for those that occur again and are not read."""
    unique: dict[str, None] = {}
    for place, name in enumerate(names, 1):
        name = name or f"(column {place}, without a name)"  # polars makes up another one
        if name in unique and name in spec.raw_columns:
            raise UserError(f"{path}: the header has the column {name!r} twice: rename one of them")
        while name in unique:
            name += " (again)"
        unique[name] = None
    return tuple(unique)


def line_cuts(path: Path, chunk_bytes: int, spec: RawSchema) -> list[int]:
    """Offsets of row starts about `chunk_bytes` apart, or more where rows are longer.

    Reads the whole file where there may be quotes: an even number of them lies before a row's end, because those
    inside quotes are doubled or escaped. In a file that is no CSV, cuts behind the first mistake may be anywhere.
    """
    cuts: list[int] = []
    with path.open("rb") as file:
        if spec.quote is None and spec.escape is None:
            size = path.stat().st_size
            for offset in range(chunk_bytes, size, chunk_bytes):
                file.seek(offset - 1)
                if file.readline(chunk_bytes).endswith(b"\n") and (not cuts or file.tell() > cuts[-1]):
                    cuts.append(file.tell())
            return [cut for cut in cuts if cut < size]
        mark, offset, odd = (spec.quote or "").encode(), 0, 0
        while block := file.read(chunk_bytes):
            escape = (spec.escape or "").encode()
            while escape and unescaped(block, spec.escape).endswith(escape) and (more := file.read(1)):
                block += more
            marks = unescaped(block, spec.escape)
            if offset and (end := _line_end(marks, mark, odd)) >= 0:
                cuts.append(offset + end + 1)
            odd ^= marks.count(mark) & 1 if mark else 0
            offset += len(block)
    return [cut for cut in cuts if cut < offset]


def _line_end(block: bytes, mark: bytes, odd: int) -> int:
    """The first end of a line outside quotes, -1 if there is none; `odd`: the block starts inside quotes."""
    end, counted = block.find(b"\n"), 0
    while end >= 0 and mark:
        odd ^= block.count(mark, counted, end) & 1
        if not odd:
            return end
        counted, end = end, block.find(b"\n", end + 1)
    return end


def csv_frames(unit: Unit, spec: RawSchema, chunk_bytes: int) -> Iterator[pl.DataFrame]:
    """The rows of a unit, about `chunk_bytes` at a time, as text; empty values are null.

    Raises BadRow for the first row that is not CSV, after all rows before it.
    """
    row = read = 0
    try:
        with open_text(unit.path, spec.encoding, unit.start) as file:
            for block in _blocks(file, unit, spec, chunk_bytes):
                frame, problem = _frame(block, unit.columns, spec)
                row += frame.height
                if frame.height:
                    yield frame
                if problem is not None:
                    raise BadRow(unit, _line(unit, spec, read + problem.offset), row + 1, problem.what)
                read += len(block)
    except Damaged as error:
        raise BadRow(unit, _line(unit, spec, read), row + 1, str(error)) from error
    if not row:  # nothing but the header
        yield pl.DataFrame(schema=dict.fromkeys(unit.columns, pl.String))


def _line(unit: Unit, spec: RawSchema, offset: int) -> int:
    """The number of the file's line at an offset into the unit."""
    left, line = unit.start - _mark(unit.path, spec) + offset, 1
    with open_text(unit.path, spec.encoding) as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            left -= len(block)
            line += block.count(b"\n")
    return line


def _blocks(file: Utf8Stream | BinaryIO, unit: Unit, spec: RawSchema, chunk_bytes: int) -> Iterator[bytes]:
    """Blocks of whole rows, about `chunk_bytes` long; the last one ends where the unit does."""
    left = unit.stop - unit.start if unit.stop else 1 << 62
    longest = max(2 * chunk_bytes, _LONGEST_ROW)
    rest = b""
    # a unit of less than two chunks is one block
    while piece := file.read(left if left < 2 * chunk_bytes else chunk_bytes):
        left -= len(piece)
        rest += piece
        if not left:
            break
        if end := rows_end(rest, spec):
            yield rest[:end]
            rest = rest[end:]
        if len(rest) > longest:
            _, _, problem = parse(rest.decode(errors="replace"), spec)
            what = f"{problem.what}; else " if problem else ""
            raise Damaged(f"{what}the row is longer than {longest:,} bytes: give more --memory")
    if rest:
        yield rest


def _frame(block: bytes, columns: Sequence[str], spec: RawSchema) -> tuple[pl.DataFrame, Problem | None]:
    """The rows of a block; what is wrong with the row after them, if anything, at a byte of the block."""
    frame = _read_plain(block, columns, spec)
    if frame is not None:
        return frame, None
    frames, offset, problem = [pl.DataFrame(schema=dict.fromkeys(columns, pl.String))], 0, None
    while offset < len(block) and problem is None:
        size = _PIECE
        while not (end := rows_end(block[offset : offset + size], spec)) and offset + size < len(block):
            size *= 2
        piece = block[offset : offset + (end or size)]
        frame = _read_plain(piece, columns, spec)
        if frame is None:
            frame, problem = _read_closely(piece, columns, spec)
        frames.append(frame)
        if problem is not None:
            problem = problem._replace(offset=offset + problem.offset)
        offset += len(piece)
    return pl.concat(frames), problem


def _read_plain(block: bytes, columns: Sequence[str], spec: RawSchema) -> pl.DataFrame | None:
    """The rows, if the block is one that polars reads as it should."""
    text = doubled(block, spec)
    rows = None if text is None else plain_rows(text, spec, len(columns))
    if text is None or rows is None:
        return None
    try:
        frame = pl.read_csv(
            text,
            separator=spec.delimiter,
            quote_char=spec.quote,
            has_header=False,
            # every value is read as text, so that a mistake can be named with its row
            schema=dict.fromkeys(columns, pl.String),
            null_values=[""],
        )
    except pl.exceptions.PolarsError:  # a line too long, or not UTF-8
        return None
    return frame if frame.height == rows else None


def _read_closely(
    block: bytes, columns: Sequence[str], spec: RawSchema
) -> tuple[pl.DataFrame, Problem | None]:
    """The rows of a block, value by value, up to what is wrong."""
    text, bad = _decoded(block, spec)
    rows, _, problem = parse(text, spec, len(columns))
    if problem is not None:
        bad = problem._replace(offset=len(text[: problem.offset].encode()))
    values = zip(*rows, strict=True) if rows else [[]] * len(columns)
    series = [pl.Series(name, list(of), pl.String) for name, of in zip(columns, values, strict=True)]
    return pl.DataFrame(series), bad


def _decoded(block: bytes, spec: RawSchema) -> tuple[str, Problem | None]:
    """The text of a block, or of its whole rows before bytes that are not UTF-8."""
    try:
        return block.decode(), None
    except UnicodeDecodeError as error:
        good = rows_end(block[: error.start], spec)
        what = f"{block[error.start : error.end]!r} is not utf-8: set `encoding` to the file's (cp1252?)"
        return block[:good].decode(), Problem(error.start, what)
