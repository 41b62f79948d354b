"""NE along training, every batch scored before it is learned from, as a measure of a model: gains and intervals.

That takes no rows away and has many times those of a test split (McMahan et al., KDD 2013). What is compared is the
first epoch, when all rows are new, without its first tenth, which tells more of the start than of the model.

The stream is cut into blocks of equal numbers of records, and the chance in which rows it had is told by how much
these differ. Neighbours are alike, so blocks are doubled until their correlation isn't told from none, while there
are enough (Fishman, "Grouping observations in digital simulation", Management Science 24, 1978). What falls or rises
steadily along the stream is learning, not chance: a line is taken out.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cetnet.benchmarks.study.report.intervals import Estimate, student_t
from cetnet.trainer.errors import UserError
from cetnet.trainer.metrics import binary_entropy

Floats = NDArray[np.float64]

LEFT_OUT = 0.1
"""First share of the examples that isn't compared."""

FEWEST_BLOCKS = 8


class Stream(NamedTuple):
    """Sums since the start of training, `[T]`, at numbers of examples, `[T]`: of the first epoch."""

    rows: Floats
    weight: Floats
    positive: Floats
    loss: Floats


class Progressive(NamedTuple):
    """A gain of progressive NE.

    Attributes:
        estimate: the gain.
        first: examples that were left out.
        blocks: their number; 0 if there were too few records for blocks, and `estimate` is of the seeds alone.
        block_rows: examples in each.
        correlated: whether neighbouring blocks still correlate, so that the interval may be too narrow.
    """

    estimate: Estimate
    first: int
    blocks: int
    block_rows: int
    correlated: bool


def read_stream(folder: Path) -> Stream | None:
    """Of a run's metrics.jsonl; None if it has no such sums. Of a step done twice (resumed), the last counts."""
    path, found = folder / "metrics.jsonl", {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["kind"] == "train" and "progressive" in record and record["epoch"] == 1:
                sums = record["progressive"]
                found[record["rows"]] = (sums["weight"], sums["positive"], sums["loss"]["fused"])
        rows = sorted(found)
        numbers = np.array([(row, *found[row]) for row in rows], dtype=np.float64)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); repeat the run") from None
    return Stream(*numbers.T) if len(rows) > 1 else None


def progressive_ne(stream: Stream) -> float:
    """NE of the examples after the first tenth; NaN if they have a single class."""
    part = _parts(stream, _compared(stream.rows))
    return float(part.sum()) if len(part) else math.nan


def progressive_gain(
    new: Mapping[int, Stream], base: Mapping[int, Stream], looks: tuple[int, ...], *, shuffled: bool
) -> Progressive | None:
    """Gain in percent over the baseline's streams, on the seeds and at the examples that both have; None without any.

    Args:
        new: By training seed.
        base: By training seed.
        looks: As for `Estimate`.
        shuffled: Whether each seed has an order of its own. Then their blocks have no rows in common, but the
            stream has: the chance of these is that of one seed's blocks. Otherwise it is what all seeds' blocks
            share, as in `bootstrap.py`.
    """
    seeds = [seed for seed in new if seed in base]
    streams = [stream for seed in seeds for stream in (base[seed], new[seed])]
    if not streams:
        return None
    rows = set.intersection(*(set(stream.rows) for stream in streams))
    points = _compared(np.array(sorted(rows)))
    parts = np.stack([_parts(stream, points) for stream in streams])  # [2 seeds, T]
    if parts.shape[1] < 1 or not np.isfinite(parts).all():
        return None
    before, after = parts[::2], parts[1::2]  # [seeds, T]
    each = 100 * (after.sum(axis=1) / before.sum(axis=1) - 1)
    point = 100 * (after.sum() / before.sum() - 1)
    # What each record adds to the error of its seed's gain, [seeds, T].
    error = 100 * (after - before * (1 + each[:, None] / 100)) / before.sum(axis=1, keepdims=True)
    length, correlated = _block_length(error if shuffled else error.mean(axis=0, keepdims=True))
    blocks = parts.shape[1] // length
    half = 0.0 if len(seeds) > 1 else math.nan
    if blocks >= FEWEST_BLOCKS:
        of_seeds = np.mean([_variance(_blocks(of_seed, length)) for of_seed in error])
        if shuffled or len(seeds) == 1:
            shared = of_seeds
        else:
            of_mean = _variance(_blocks(error.mean(axis=0), length))
            shared = (len(seeds) * of_mean - of_seeds) / (len(seeds) - 1)
        half = student_t(blocks - 2) * max(float(shared), 0) ** 0.5
    return Progressive(
        Estimate(float(point), each, half, half, looks),
        int(points[0]),
        blocks if blocks >= FEWEST_BLOCKS else 0,
        round((points[-1] - points[0]) / blocks),
        correlated,
    )


def _compared(rows: Floats) -> Floats:
    """Without those of the first share of the examples: that where it ends is the first."""
    return rows[rows >= LEFT_OUT * rows.max(initial=0)]


def _parts(stream: Stream, points: Floats) -> Floats:
    """What the examples between two points and the next add to NE, `[T - 1]`; NaN if all have a single class."""
    at = np.searchsorted(stream.rows, points)
    if len(at) < 2:
        return np.empty(0)
    weight, positive = (float(sums[at[-1]] - sums[at[0]]) for sums in (stream.weight, stream.positive))
    entropy = binary_entropy(positive / weight) if weight > 0 and 0 <= positive <= weight else 0.0
    loss = np.diff(stream.loss[at])
    return loss / (weight * entropy) if entropy else np.full(len(loss), math.nan)


def _block_length(errors: Floats) -> tuple[int, bool]:
    """Records of a block, from errors of one or several seeds, `[seeds, T]`; and whether blocks still correlate."""
    length = 1
    while True:
        each = [_without_line(_blocks(error, length)) for error in errors]
        blocks = len(each[0])
        if blocks < 3:
            return length, False
        products = sum(float(of_seed[1:] @ of_seed[:-1]) for of_seed in each)
        squares = sum(float(of_seed @ of_seed) for of_seed in each)
        correlated = products > 1.645 * squares / (blocks * len(each)) ** 0.5
        if not correlated or blocks // 2 < FEWEST_BLOCKS:
            return length, correlated
        length *= 2


def _blocks(error: Floats, length: int) -> Floats:
    """Sums over blocks of so many records; the last has those that are left."""
    number = max(len(error) // length, 1)
    return np.add.reduceat(error, np.arange(number) * length)


def _without_line(values: Floats) -> Floats:
    """The residuals of a straight line."""
    place = np.arange(len(values)) - (len(values) - 1) / 2
    rest = values - values.mean()
    if len(values) < 3:
        return rest
    return rest - place * (place @ rest) / (place @ place)


def _variance(blocks: Floats) -> float:
    """Of the sum of independent blocks around a line."""
    rest = _without_line(blocks)
    return float(rest @ rest) * len(blocks) / (len(blocks) - 2)
