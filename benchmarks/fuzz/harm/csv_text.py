"""CSV, harmed as editors, exports and killed writers harm it."""

import gzip
import random
from collections.abc import Callable
from typing import Any

from cetnet.benchmarks.fuzz.clicks import Dialect
from cetnet.benchmarks.fuzz.harm.files import (
    Bytes,
    append,
    cut,
    drop_span,
    empty,
    flip,
    garbage,
    repeat_span,
    zero_span,
)

NASTY = [
    *(
        b'"',
        b"'",
        b",",
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"\\",
        b"\xff",
        b"\xef\xbb\xbf",
        b"|",
        b";",
        b"\t",
        b" ",
    ),
    *(
        "\u2028".encode(),
        "\u0085".encode(),
        "\u00e9".encode(),
        b"\x1a",
        b"#",
        b'""',
        b'\\"',
        b'"\n',
        b'",',
        b"\x0b",
    ),
]
CELLS = [
    *(
        "",
        " ",
        "NULL",
        "null",
        "\\N",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "1e400",
        "1e39",
        "1e-400",
        "1_000",
        " 1",
        "1 ",
        "+1",
    ),
    *(
        "0x1",
        "1,5",
        "true",
        "-0",
        "-1",
        "9" * 20,
        "9" * 400,
        "1.0",
        "1e0",
        "01",
        "\u0661",
        "\u200b1",
        "|",
        "||",
        "1|",
        "|1",
    ),
    *(
        "1||2",
        "[1, 2]",
        "a" * 200_000,
        "2024-03-01",
        "2024-03-01 10:00:00",
        "1700000000.5",
        "1700000000000",
        "\ufeff1",
        '5" disc',
    ),
    *(
        '"',
        '""',
        "'",
        "a\\",
        'a\\"b',
        "\r",
        "\n",
        "x\r\ny",
        "\0",
        "e",
        "-",
        ".",
        "1.",
        ".5",
        "0b1",
        "1d",
        "1f",
    ),
]


def insert_nasty(rng: random.Random, content: bytes) -> bytes:
    """Characters that parsers care for, somewhere."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(content) + 1)
        content = content[:place] + rng.choice(NASTY) + content[place:]
    return content


def line_ends(rng: random.Random, content: bytes) -> bytes:
    """Other ends of lines, of all or of some."""
    end = rng.choice([b"\r\n", b"\r", b"\n\n", b"\n\r", b"\n \n", b",\n", b"\x0b\n"])
    lines = content.split(b"\n")
    if rng.random() < 0.5:
        return end.join(lines)
    return b"".join(line + (end if rng.random() < 0.2 else b"\n") for line in lines)


def recode(rng: random.Random, content: bytes) -> bytes:
    """Another encoding, or a byte order mark."""
    text = content.decode(errors="replace")
    codec = rng.choice(["utf-16", "utf-16-le", "latin-1", "cp1252", "utf-8-sig", "utf-32", "utf-7", "cp500"])
    return text.encode(codec, errors="replace")


def lines_moved(rng: random.Random, content: bytes) -> bytes:
    """A line twice, missing, blank, cut short, or the header again."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            lines.insert(place, lines[place])
        case 1:
            del lines[place]
        case 2:
            lines.insert(place, rng.choice([b"", b" ", b",,,,,,,", b'""', b"\t"]))
        case 3:
            lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
        case 4:
            lines.insert(place, lines[0])
        case 5:
            lines[place] += rng.choice([b",", b",x", b",,,,", b' "'])
    return b"\n".join(lines)


def last_line(rng: random.Random, content: bytes) -> bytes:
    """The last line: without its end, with two, cut short."""
    content = content.rstrip(b"\n")
    choice = rng.randrange(4)
    if choice == 0:
        return content
    if choice == 1:
        return content + b"\n" * rng.randrange(2, 5)
    if choice == 2:
        return content + b"\r\n\r\n"
    return content[: -rng.randrange(1, 40)]


def header(rng: random.Random, content: bytes, delimiter: bytes) -> bytes:
    """Names: renamed, missing, twice, with spaces, in quotes, in capitals."""
    first, _, rest = content.partition(b"\n")
    names = first.split(delimiter)
    place = rng.randrange(len(names))
    match rng.randrange(8):
        case 0:
            names[place] = rng.choice(CELLS[:60]).encode()
        case 1:
            del names[place]
        case 2:
            names[place] = names[rng.randrange(len(names))]
        case 3:
            names[place] = b" " + names[place]
        case 4:
            names = [b'"' + name + b'"' for name in names]
        case 5:
            names[place] = names[place].upper()
        case 6:
            names.append(rng.choice([b"", b"extra", b"user", b'"a\nb"']))
        case 7:
            rng.shuffle(names)
    return delimiter.join(names) + b"\n" + rest


def cells(rng: random.Random, content: bytes, delimiter: bytes) -> bytes:
    """Other values in some cells, put there without quotes."""
    lines = content.split(b"\n")
    for _ in range(rng.choice([1, 1, 3])):
        place = rng.randrange(len(lines))
        fields = lines[place].split(delimiter)
        fields[rng.randrange(len(fields))] = rng.choice(CELLS).encode()
        lines[place] = delimiter.join(fields)
    return b"\n".join(lines)


def backslashes(rng: random.Random, content: bytes, delimiter: bytes) -> bytes:
    """Quotes written as Spark, Hive and MySQL write them, in some values."""
    lines = content.split(b"\n")
    for place in rng.sample(range(1, max(2, len(lines))), k=min(2, max(1, len(lines) - 2))):
        if place < len(lines):
            fields = lines[place].split(delimiter)
            fields[rng.randrange(len(fields))] = rng.choice(
                [b'"5\\" disc"', b'"a\\\\"', b'"\\""', b"\\,", b'a"b"c']
            )
            lines[place] = delimiter.join(fields)
    return b"\n".join(lines)


def only_header(_rng: random.Random, content: bytes) -> bytes:
    """No rows."""
    return content.split(b"\n")[0] + b"\n"


CSV: list[Bytes] = [
    *(
        insert_nasty,
        insert_nasty,
        line_ends,
        line_ends,
        recode,
        lines_moved,
        lines_moved,
        last_line,
        last_line,
        only_header,
    ),
    *(flip, cut, drop_span, repeat_span, zero_span, append, empty, garbage),
]


def csv_ways(delimiter: bytes) -> list[Bytes]:
    """The ways to harm CSV whose columns are divided so."""
    own = [_with(way, delimiter) for way in (header, cells, cells, cells, backslashes, backslashes)]
    return [*CSV, *own]


def _with(way: Callable[[random.Random, bytes, bytes], bytes], delimiter: bytes) -> Bytes:
    def harm(rng: random.Random, content: bytes) -> bytes:
        return way(rng, content, delimiter)

    harm.__doc__ = way.__doc__
    return harm


def odd_ids(rng: random.Random, clicks: list[dict[str, Any]]) -> str:
    """Put odd values where anything may stand: a writer of CSV then writes them as it should."""
    column = rng.choice(["user", "item", "note", "note", "tags", "history"])
    values = rng.sample(CELLS, k=rng.choice([1, 2, 5]))
    for click in rng.sample(clicks, k=rng.choice([1, 2, 10])):
        value = rng.choice(values)
        click[column] = [value] if isinstance(click[column], list) else value
    return f"odd values in {column}: {values!r:.100}"


def harm_gzip(rng: random.Random, content: bytes) -> bytes:
    """A gzip file: whole, in several members, cut, with something behind its end, with a flipped bit, or none."""
    half = len(content) // 2
    packed = gzip.compress(content, mtime=0)
    match rng.randrange(7):
        case 0:
            return gzip.compress(content[:half], mtime=0) + gzip.compress(content[half:], mtime=0)
        case 1:
            return cut(rng, packed)
        case 2:
            return packed + rng.choice([b"\0" * 10, b"garbage", b"\x1f\x8b", gzip.compress(b"", mtime=0)])
        case 3:
            return flip(rng, packed)
        case 4:
            return content
        case 5:
            return packed[:-8] + rng.randbytes(8)
    return packed


def draw_dialect(rng: random.Random) -> Dialect:
    """Mostly the usual one."""
    if rng.random() < 0.6:
        return Dialect()
    return Dialect(
        rng.choice([",", ";", "\t", ":", " "]), rng.choice(['"', '"', "'", None]), rng.random() < 0.7
    )
