"""Rules that give each raw row its split, one chunk of rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import polars as pl

from cetnet.trainer.encoder.hashing import hash_text
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS, Fractions, check_fractions, random_split, time_split
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.values import canonical_integers

Frames = Callable[[Sequence[str]], Iterator[pl.DataFrame]]
Assign = Callable[[pl.DataFrame], pl.Series]


class Split(Protocol):
    """A split of all rows into train, validation and test. Its `repr` must say all that it depends on.

    Attributes:
        rule: in words, for the data card.
        in_time_order: whether the rows of a split are written in the order of time (equal times: of the raw rows),
            not in that of the raw rows. The assigned splits must then not decrease with time.
    """

    @property
    def rule(self) -> str: ...  # noqa: D102

    @property
    def in_time_order(self) -> bool: ...  # noqa: D102

    def fit(self, frames: Frames) -> Assign:
        """A picklable function from rows to their index into SPLITS (Int8).

        `frames(columns)` iterates over all rows in their order, chunk by chunk, with any of the columns `#row`
        (from 0 over all files), `#file` (number of the file), `#label`, `#group` (text, or null) and `#timestamp`
        (int64 seconds); the function is given a chunk with all of those that the schema has. Raises UserError if the
        rule can't be applied.
        """
        ...


@dataclass(frozen=True)
class RandomSplit:
    """By a seeded hash of the group, or of the row number where a row or the schema (`group` is None) has none.

    A group that is an integer is hashed as one, other text by `hash_text`.
    """

    fractions: Fractions
    seed: int
    group: str | None
    in_time_order: bool = False

    @property
    def rule(self) -> str:
        """In words."""
        return f"random by {self.group or 'row'} (seeded hash), {_shown(self.fractions)}"

    def fit(self, frames: Frames) -> Assign:  # noqa: ARG002
        """Nothing to learn from the rows."""
        return partial(_random, self.fractions, self.seed, "#group" if self.group else "#row")


def _random(fractions: Fractions, seed: int, key: str, frame: pl.DataFrame) -> pl.Series:
    keys = frame[key]
    if keys.dtype == pl.String:
        integers = canonical_integers(keys)
        if integers.null_count():
            hashes = pl.Series(hash_text(keys.to_arrow()).view(np.int64))
            integers = integers.zip_with(integers.is_not_null(), hashes)
        keys = integers.zip_with(keys.is_not_null(), frame["#row"])
    return random_split(keys, seed, fractions)


@dataclass(frozen=True)
class TimeSplit:
    """By the timestamp, each split with its fraction of the rows; equal timestamps stay in one, the later."""

    fractions: Fractions
    timestamp: str
    in_time_order: bool = True

    @property
    def rule(self) -> str:
        """In words."""
        return f"by time ({self.timestamp}), {_shown(self.fractions)}; rows in time order"

    def fit(self, frames: Frames) -> Assign:
        """Find the first timestamps of validation and of test."""

        def times() -> Iterator[np.ndarray]:
            return (frame["#timestamp"].to_numpy() for frame in frames(["#timestamp"]))

        rows, low, high = 0, 2**63 - 1, -(2**63)
        for values in times():
            rows, low, high = rows + len(values), min(low, int(values.min())), max(high, int(values.max()))
        first, second = (
            _order_statistic(times, int(rows * share), low, high) for share in np.cumsum(self.fractions)[:2]
        )
        if not low < first < second:
            raise UserError(
                f"column {self.timestamp!r} has too few distinct timestamps for a split by time "
                f"(from {low} to {high}); use a random split"
            )
        return partial(_by_time, (first, second))


@dataclass(frozen=True)
class WholeSplit:
    """All rows, in their order, into one split."""

    split: str
    in_time_order: bool = False

    @property
    def rule(self) -> str:
        """In words."""
        return f"all rows are {self.split}, in their order"

    def fit(self, frames: Frames) -> Assign:  # noqa: ARG002
        """Nothing to learn from the rows."""
        return partial(_all_in, SPLITS.index(self.split))


def _all_in(index: int, frame: pl.DataFrame) -> pl.Series:
    return pl.Series(np.full(frame.height, index, np.int8))


def splits_of(split: Split) -> tuple[str, ...]:
    """The splits that rows are to be in."""
    return (split.split,) if isinstance(split, WholeSplit) else SPLITS


def _by_time(cuts: tuple[int, int], frame: pl.DataFrame) -> pl.Series:
    return time_split(frame["#timestamp"], cuts)


def _order_statistic(
    values: Callable[[], Iterator[np.ndarray]], rank: int, low: int, high: int, bins: int = 65_536
) -> int:
    """The value at position `rank` of the sorted int64 values, all in [low, high], by ever finer histograms."""
    while low < high:
        width = (high - low) // bins + 1
        histogram = np.zeros(bins, np.int64)
        for part in values():
            inside = part[(part >= low) & (part <= high)]
            # the difference of two int64 may not be one, but is a uint64
            offsets = inside.astype(np.uint64) - np.uint64(low % 2**64)
            histogram += np.bincount((offsets // np.uint64(width)).astype(np.int64), minlength=bins)
        bin = int(np.searchsorted(histogram.cumsum(), rank, side="right"))
        rank -= int(histogram[:bin].sum())
        low, high = low + bin * width, min(high, low + (bin + 1) * width - 1)
    return low


def parse_split(text: str, spec: RawSchema, seed: int) -> Split:
    """The rule of "random:0.8,0.1,0.1" or "time:0.8,0.1,0.1", or one of SPLITS; anything else is a UserError."""
    if text in SPLITS:
        return WholeSplit(text)
    kind, _, numbers = text.partition(":")
    try:
        fractions: Fractions = tuple(float(number) for number in numbers.split(","))  # type: ignore[assignment]
    except ValueError:
        fractions = (0, 0, 0)
    if kind not in ("random", "time"):
        raise UserError(
            f"split {text!r}: give random:0.8,0.1,0.1 or time:0.8,0.1,0.1, or one of {', '.join(SPLITS)} for all rows"
        )
    check_fractions(fractions)
    if kind == "random":
        return RandomSplit(fractions, seed, spec.group)
    if spec.timestamp is None:
        raise UserError("a split by time needs a timestamp column in the schema; or use a random split")
    return TimeSplit(fractions, spec.timestamp)


def _shown(fractions: Fractions) -> str:
    return ",".join(f"{fraction:g}" for fraction in fractions)
