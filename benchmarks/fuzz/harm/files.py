"""Bytes of any file, harmed as disks, copies and people harm them."""

import random
from collections.abc import Callable

Bytes = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, content: bytes) -> bytes:
    """A bit of a byte."""
    if not content:
        return b"\x01"
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def flip_many(rng: random.Random, content: bytes) -> bytes:
    """Bits of ten bytes."""
    for _ in range(10):
        content = flip(rng, content)
    return content


def flip_at_end(rng: random.Random, content: bytes) -> bytes:
    """A bit of the last 600 bytes, where Parquet has its footer."""
    return content[:-600] + flip(rng, content[-600:])


def cut(rng: random.Random, content: bytes) -> bytes:
    """The end is missing."""
    return content[: rng.randrange(len(content) + 1)]


def empty(_rng: random.Random, _content: bytes) -> bytes:
    """Nothing is left."""
    return b""


def garbage(rng: random.Random, _content: bytes) -> bytes:
    """Random bytes."""
    return rng.randbytes(rng.choice([1, 7, 300, 5000]))


def drop_span(rng: random.Random, content: bytes) -> bytes:
    """Some bytes are missing."""
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.randrange(1, 60) :]


def repeat_span(rng: random.Random, content: bytes) -> bytes:
    """Some bytes are there twice."""
    start = rng.randrange(len(content) + 1)
    stop = start + rng.randrange(1, 60)
    return content[:stop] + content[start:]


def zero_span(rng: random.Random, content: bytes) -> bytes:
    """A hole of zeros, as file systems leave after a crash."""
    start = rng.randrange(len(content) + 1)
    size = min(len(content) - start, rng.choice([1, 16, 512]))
    return content[:start] + bytes(size) + content[start + size :]


def append(rng: random.Random, content: bytes) -> bytes:
    """Something behind the end."""
    return content + rng.choice([b"\n", b"\0", b"x", b"\n\n", b" ", rng.randbytes(9), content])


ANY_FILE: list[Bytes] = [
    flip,
    flip_many,
    flip_at_end,
    cut,
    empty,
    garbage,
    drop_span,
    repeat_span,
    zero_span,
    append,
]
