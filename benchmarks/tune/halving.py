"""Successive halving: where trials are compared, which of them go on, and what the best of fewer would have been."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cetnet.trainer.errors import UserError
from cetnet.trainer.metrics import binary_entropy

_RECORDS = 20  # that a run makes until the first rung, at least if its steps are that many


class Rungs(NamedTuple):
    """Where the trials of a variant are compared.

    Attributes:
        every: rows between two records of a trial, the same for all, whatever their batch size.
        windows: first and last row of the training rows that each rung compares, multiples of `every`. The last rung
            of all, at the end of training, is not among them.
    """

    every: int
    windows: list[tuple[int, int]]


def rungs(epoch_rows: int, batch_sizes: Sequence[int], eta: int, count: int) -> Rungs:
    """The rungs of trials with these batch sizes; raises UserError if an epoch is too short for so many.

    A rung leaves out the first 1/eta of its rows: what a model does there is decided by its start.
    """
    step = math.lcm(*batch_sizes)
    targets = [epoch_rows / eta ** (count - 1 - rung) for rung in range(count - 1)]
    if targets and targets[0] < eta * step:
        raise UserError(
            f"tune: the first of {count} rungs is after {targets[0]:,.0f} of {epoch_rows:,} rows, too few to compare "
            f"trials with steps of {step:,} rows; make tune.rungs smaller, or data.batch_size"
        )
    every = step * max(1, int((targets[0] if targets else epoch_rows) / step / _RECORDS))
    windows = []
    for target in targets:
        last = int(target / every) * every
        windows.append((int(last / eta / every) * every, last))
    return Rungs(every, windows)


def survivors(values: Mapping[int, float], started: int, eta: int, rung: int) -> list[int]:
    """The trials that go on after a rung, the best first: one of eta at each, at least one.

    Args:
        values: NE at the rung, by the trial's number, of those that came so far; lower is better.
        started: Trials at the first rung, failed ones included.
        eta: As in the study file.
        rung: From 0.
    """
    ranked = sorted(values, key=lambda number: (_rank(values[number]), number))
    return ranked[: max(1, started // eta ** (rung + 1))]


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


def window_ne(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """NE of the rows between two cumulative sums (`weight`, `positive`, `loss`); NaN if they have one class."""
    weight, positive, loss = (after[key] - before[key] for key in ("weight", "positive", "loss"))
    entropy = binary_entropy(positive / weight) if weight > 0 else 0.0
    return loss / weight / entropy if entropy > 0 else math.nan


def expected_best(values: Sequence[float]) -> list[float]:
    """The lowest of k = 1, 2, ... trials that one may expect, were they drawn again.

    Dodge et al. 2019 (arXiv 1909.03004), equations 4 to 7, for a minimum: with the empirical distribution of the n
    values v_1 <= ... <= v_n, sum_i v_i [((n-i+1)/n)^k - ((n-i)/n)^k].
    """
    ranked, n = sorted(values), len(values)
    return [
        sum(value * (((n - i) / n) ** k - ((n - i - 1) / n) ** k) for i, value in enumerate(ranked))
        for k in range(1, n + 1)
    ]
