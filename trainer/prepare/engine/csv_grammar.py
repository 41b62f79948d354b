"""What a CSV file is: RFC 4180 to the letter, with the delimiter, quote and escape of a raw schema.

A quote opens at the start of a value, and closes before a delimiter, the end of a line or of the file; inside, it is
doubled, or escaped. What Python's csv module reads otherwise than other programs do is refused: quotes elsewhere, a
carriage return alone. Blank lines are no rows.

`masked` and `plain_rows` look at whole blocks at once; `parse` reads value by value, and says what is wrong.
"""

import codecs
import re
from functools import cache
from typing import NamedTuple

import numpy as np

from cetnet.trainer.prepare.engine.raw import RawSchema

# polars skips the first and decompresses what starts with the others (gzip, zlib, zstd), in the middle of a file, too
_NOT_FOR_POLARS = (codecs.BOM_UTF8, b"\x1f\x8b", b"x\x01", b"x^", b"x\x9c", b"x\xda", b"\x28\xb5\x2f\xfd")
_CACHED = 1 << 18  # bytes that are looked at together
_BLANK = 0  # in the place of what is masked: neither delimiter, quote nor line end


class Problem(NamedTuple):
    """What is wrong after the whole rows of a text, at a character of it, and the remedy."""

    offset: int
    what: str


def unescaped(block: bytes, escape: str | None) -> bytes:
    """A block of the same length without its escapes and what they escape."""
    if escape is None or escape.encode() not in block:
        return block
    return re.sub(re.escape(escape).encode() + b".", bytes([_BLANK] * 2), block, flags=re.DOTALL)


def masked(block: bytes, spec: RawSchema) -> tuple[bytes | bytearray, bool]:
    """A block that starts at a row, of the same length, without what is escaped or inside quotes.

    And whether every quote opens or closes a value, or is doubled inside one.
    """
    block = unescaped(block, spec.escape)
    if spec.quote is None or spec.quote.encode() not in block:
        return block, True
    text = np.frombuffer(block, np.uint8)
    outside = bytearray(len(block))
    result = np.frombuffer(outside, np.uint8)
    quote, inside, good = ord(spec.quote), 0, True
    before = np.isin(np.arange(256), list(f"{spec.delimiter}{spec.quote}\n".encode()))
    behind = np.isin(np.arange(256), list(f"{spec.delimiter}{spec.quote}\r\n".encode()))
    for start in range(0, len(block), _CACHED):
        piece = text[start : start + _CACHED]
        is_quote = piece == quote
        places = start + np.flatnonzero(is_quote)
        if not len(places):
            result[start : start + _CACHED] = _BLANK if inside else piece
            continue
        opens, closes = places[inside::2], places[1 - inside :: 2]
        # nothing is before the first byte, nor behind the last
        good = good and bool(before[text[opens[int(len(opens) and opens[0] == 0) :] - 1]].all())
        good = good and bool(behind[text[closes[closes < len(block) - 1] + 1]].all())
        is_inside = np.bitwise_xor.accumulate(is_quote.view(np.uint8))
        is_inside ^= inside
        result[start : start + _CACHED] = np.where(is_inside, np.uint8(_BLANK), piece)
        inside = int(is_inside[-1])
    return outside, good and not inside


def doubled(block: bytes, spec: RawSchema) -> bytes | None:
    """A block with its escaped quotes doubled; None if it has other escapes, or some that may be outside quotes."""
    if spec.escape is None or spec.escape.encode() not in block:
        return block
    if spec.quote is None:
        return None
    escaped = (spec.escape + spec.quote).encode()
    only = block.count(spec.escape.encode()) == block.count(escaped) and not block.startswith(escaped)
    # doubled, these would be quotes that open or close a value
    if only and not any(mark.encode() + escaped in block for mark in (spec.delimiter, spec.quote, "\n")):
        return block.replace(escaped, spec.quote.encode() * 2)
    return None


def rows_end(block: bytes, spec: RawSchema) -> int:
    """Length of the whole lines that a block starts with."""
    return masked(block, spec)[0].rfind(b"\n") + 1


def plain_rows(block: bytes, spec: RawSchema, columns: int) -> int | None:
    """The rows of a block of `columns`; None: it has to be read value by value.

    Lines with more and with fewer columns that make up for each other are left to the reader, which must refuse the
    former.
    """
    if b"\0" in block or block.startswith(_NOT_FOR_POLARS):
        return None
    outside, enclosing = masked(block, spec)
    if not enclosing or outside.startswith(b"\n") or b"\n\n" in outside:
        return None
    if b"\r" in outside and (
        outside.count(b"\r") != outside.count(b"\r\n") or b"\n\r\n" in outside or outside.startswith(b"\r")
    ):
        return None
    rows = outside.count(b"\n") + (not outside.endswith(b"\n"))
    return rows if outside.count(spec.delimiter.encode()) == rows * (columns - 1) else None


class _Patterns(NamedTuple):
    token: re.Pattern[str]  # a value in quotes or one without, and what ends it
    quoted: re.Pattern[str]  # up to its closing quote
    plain: re.Pattern[str]
    escapes: re.Pattern[str]


@cache
def _patterns(
    delimiter: str, quote: str | None, escape: str | None, separator: str, kept: tuple[str, ...]
) -> _Patterns:
    d, q, e = (re.escape(mark or "") for mark in (delimiter, quote, escape))
    escaped = rf"|{e}[^\0]" if escape else ""
    plain = rf"(?:[^\0\r\n{d}{q}{e}]+{escaped})*+"
    quoted = rf"{q}(?:[^\0{q}{e}]+|{q}{q}{escaped})*+" if quote else "(?!)"
    between = re.escape(separator)
    markers = "|".join(map(re.escape, kept)) or "(?!)"
    return _Patterns(
        re.compile(rf"(?:({quoted}{q})|({plain}))({d}|\r?\n|\Z)", re.DOTALL),
        re.compile(quoted, re.DOTALL),
        re.compile(plain, re.DOTALL),
        re.compile(rf"(?:\A|(?<={between}))({markers})(?={between}|\Z)|{e}(.)|({q}){q or '(?!)'}", re.DOTALL),
    )


def parse(
    text: str, spec: RawSchema, columns: int | None = None, first: bool = False
) -> tuple[list[list[str | None]], int, Problem | None]:
    """The rows of a text that starts at a row, empty values None; the length of what was read; what is wrong then.

    With `columns`, rows of more or fewer are wrong. With `first`, only the first row is read.
    """
    # null markers that look like an escape, as \N does, are left as they are
    kept = tuple(null for null in spec.null_values if spec.escape is not None and spec.escape in null)
    patterns = _patterns(spec.delimiter, spec.quote, spec.escape, spec.separator, kept)
    rows: list[list[str | None]] = []
    row: list[str | None] = []
    start = end = 0
    for match in iter(patterns.token.scanner(text).match, None):  # type: ignore[attr-defined]
        quoted, plain, mark = match.groups()
        end = match.end()
        row.append(_value(quoted, plain, spec, patterns) or None)
        if mark == spec.delimiter:
            continue
        if len(row) > 1 or quoted is not None or plain:  # else the line is blank
            if columns not in (None, len(row)):
                return rows, start, Problem(start, _columns(len(row), columns, text[start:end], spec))
            rows.append(row)
            if first:
                return rows, end, None
        row, start = [], end
        if end == len(text):
            return rows, end, None
    return rows, start, _problem(text, start, end, spec, patterns) if text else None


def _value(quoted: str | None, plain: str | None, spec: RawSchema, patterns: _Patterns) -> str:
    value = plain or "" if quoted is None else quoted[1:-1]
    if spec.escape is not None and spec.escape in value:
        return patterns.escapes.sub(lambda match: match[1] or match[2] or match[3], value)
    if quoted is not None and spec.quote is not None:
        return value.replace(spec.quote * 2, spec.quote)
    return value


def _columns(found: int, wanted: int | None, line: str, spec: RawSchema) -> str:
    where = "`header`" if spec.header else "the header"
    if found < (wanted or 0) and not line.endswith("\n"):
        hint = "its line has no end: was the file cut short?"
    elif spec.quote is None and '"' in line:
        hint = "if quotes enclose values, leave out `quote: null`"
    elif found == 1:
        hint = "is `delimiter` right?"
    elif found > (wanted or 0) and spec.quote is not None:
        hint = f"enclose values that hold {spec.delimiter!r} in quotes"
        if found == (wanted or 0) + 1:
            hint += "; if all lines have one more, give all columns a name, in the file or by `header`"
    else:
        hint = "complete the line, or take it out"
    return f"expected {wanted} columns as in {where}, found {found}; {hint}"


def _problem(text: str, start: int, at: int, spec: RawSchema, patterns: _Patterns) -> Problem:
    """What is wrong with the value at a character; its row starts at another."""
    enclosed = spec.quote is not None and text.startswith(spec.quote, at)
    match = (patterns.quoted if enclosed else patterns.plain).match(text, at)
    assert match is not None
    end = match.end()
    found, behind = text[end : end + 1], text[end + 1 : end + 2]
    excerpt = repr(text[max(at, end - 30) : end + 10])
    if "\0" in (found, behind):
        return Problem(end, f"a NUL byte, at {excerpt}: the file is damaged, or set `encoding` (utf-16?)")
    if found and found == spec.escape:
        return Problem(end, f"ends after the `escape` {found!r}: was the file cut short?")
    if "\r" in (found, behind):
        return Problem(
            end, f"a carriage return without a line feed, at {excerpt}: write line ends as \\n or \\r\\n"
        )
    remedy = "double quotes inside values and enclose these, or set `quote: null` if quotes enclose nothing"
    if spec.escape is None and f"\\{spec.quote}" in text[start : end + 1]:
        remedy = "if a backslash stands before quotes inside values, set `escape: '\\'`"
    if enclosed and not found:
        return Problem(at, f"a quote that opens here is not closed, {text[at : at + 40]!r}: {remedy}")
    where = "text after a closing quote" if enclosed else "a quote inside a value that none encloses"
    return Problem(end, f"{where}, at {excerpt}: {remedy}")
