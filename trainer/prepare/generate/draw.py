"""What the generators share: the law that values and labels are drawn from, texts, and the files."""

import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import IO
from zlib import crc32

import numpy as np
import polars as pl
import pyarrow as pa

from cetnet.trainer.console import progress_bar
from cetnet.trainer.encoder.hashing import mix64
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import hashed_uniform, staging
from cetnet.trainer.prepare.sources.drawn import long_tail

CHUNK_ROWS = 131_072
PILOT_ROWS = 8_192
PAIRS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)


@dataclass(frozen=True)
class Law:
    """Numbers that are hashes of the seed, of what they are for, and of integer keys."""

    seed: int

    def _salt(self, name: str) -> int:
        return (self.seed << 32) + crc32(name.encode())

    def uniform(self, name: str, keys: np.ndarray) -> np.ndarray:
        """Uniform in [0, 1), one for each key."""
        return hashed_uniform(keys, self._salt(name))

    def rank(self, name: str, size: int, keys: np.ndarray) -> np.ndarray:
        """Long-tailed ranks in [0, size), one for each key."""
        return long_tail(self.uniform(name, keys), size)

    def bits(self, name: str, ranks: np.ndarray) -> np.ndarray:
        """The uint64 a rank of a field is known by."""
        return mix64(ranks.astype(np.uint64) ^ mix64(np.array(self._salt(name) % 2**64, np.uint64)))

    def effect(self, name: str, ranks: np.ndarray) -> np.ndarray:
        """What a value adds to the log-odds, in [-1, 1): 0 for rank -1, a missing value."""
        return np.where(ranks < 0, 0.0, 2 * self.uniform(f"effect of {name}", ranks) - 1)

    def label(self, log_odds: np.ndarray, row: np.ndarray) -> pl.Series:
        """Clicks (Int8) with these log-odds."""
        return pl.Series((self.uniform("click", row) < 1 / (1 + np.exp(-log_odds))).astype(np.int8))


def long_tailed(rng: np.random.Generator, size: int, values: int) -> np.ndarray:
    """`size` long-tailed ranks in [0, values)."""
    return long_tail(rng.random(size), values)


def standardized(effects: Callable[[np.ndarray], np.ndarray], row: np.ndarray) -> np.ndarray:
    """The effects of some rows, less the mean and over the deviation of those of the first PILOT_ROWS."""
    pilot = effects(np.arange(PILOT_ROWS))
    return (effects(row) - pilot.mean()) / pilot.std()


def shuffled(row: np.ndarray, rows: int) -> np.ndarray:
    """A bijection of [0, rows) that tears neighbours apart."""
    stride = max(1, int(0.618 * rows))
    while gcd(stride, rows) > 1:
        stride += 1
    return (row * stride + rows // 2) % rows


def hex_text(numbers: np.ndarray, missing: np.ndarray | None = None) -> pl.Series:
    """The low 32 bits of numbers as 8 hexadecimal digits; null where missing."""
    digits = PAIRS[numbers.astype(">u4").view(np.uint8)]
    offsets = 8 * np.arange(len(numbers) + 1, dtype=np.int64)
    valid = None if missing is None else pa.array(~missing).buffers()[1]
    return pl.Series(
        pa.LargeStringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(digits), valid)
    )


def numbers(values: np.ndarray, missing: np.ndarray) -> pl.Series:
    """Int64, null where missing."""
    return pl.Series(pa.array(values.astype(np.int64), mask=missing))


def joined(values: np.ndarray, lengths: np.ndarray, separator: str) -> pl.Series:
    """Lists of numbers as text: the first `lengths[0]` values for the first row, and so on; null for none."""
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    lists = pl.Series(pa.LargeListArray.from_arrays(offsets, pa.array(values.astype(np.int64))))
    text = pl.DataFrame({"lists": lists}).select(
        pl.col("lists").cast(pl.List(pl.String)).list.join(separator).replace("", None)
    )
    return text["lists"]


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file for writing, compressed where its name ends in .gz."""
    with path.open("wb") as file:
        if path.suffix != ".gz":
            yield file
            return
        # no name and no time in it, so that equal rows are equal bytes
        with gzip.GzipFile("", "wb", 1, file, 0) as packed, io.BufferedWriter(packed, 2**20) as buffered:
            yield buffered


Draw = Callable[[np.ndarray], pl.DataFrame]


def write_files(
    out: Path,
    files: Mapping[str, int],
    draw: Draw,
    *,
    separator: str = ",",
    header: bool = True,
    more: Callable[[Path], None] | None = None,
) -> None:
    """Write files of so many rows each into the new directory `out`: row numbers go on from file to file.

    `draw` makes the columns of rows [rows] of any numbers; `more` writes further files. Memory: CHUNK_ROWS rows.
    Raises UserError for an existing `out` and for files without rows.
    """
    empty = [name for name, rows in files.items() if rows < 1]
    if empty:
        raise UserError(f"too few rows for {len(files)} files ({empty[0]} would have none): give more --rows")
    with staging(out, overwrite=False) as directory, progress_bar() as progress:
        task = progress.add_task("rows", total=sum(files.values()))
        first = 0
        for name, rows in files.items():
            with _opened(directory / name) as file:
                for start in range(first, first + rows, CHUNK_ROWS):
                    frame = draw(np.arange(start, min(start + CHUNK_ROWS, first + rows)))
                    text = frame.write_csv(
                        include_header=header and start == first, separator=separator, quote_style="never"
                    )
                    file.write(text.encode())
                    progress.advance(task, frame.height)
            first += rows
        if more is not None:
            more(directory)


def by_shares(rows: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Rows of each file, in proportion to its share."""
    ends = np.round(rows * np.cumsum(list(shares.values())) / sum(shares.values())).astype(int)
    return dict(zip(shares, np.diff(ends, prepend=0).tolist(), strict=True))
