"""What NE a model loses without a feature: permutation importance (Breiman 2001; Fisher, Rudin, Dominici 2019)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cetnet.trainer.bootstrap import bootstrap
from cetnet.trainer.metrics import binary_entropy, cross_entropy, why_undefined

Floats = NDArray[np.float64]


class Lost(NamedTuple):
    """NE lost in percent of the NE, and its 95 % interval."""

    percent: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval says nothing of the sign."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Evaluated:
    """The rows that a model is asked about.

    Attributes:
        label: `[n]` float64, 0 or 1.
        weight: `[n]` float64.
        unit: `[n]` int64 from 0, what is resampled: the row's group, or the row.
    """

    label: Floats
    weight: Floats
    unit: NDArray[np.int64]

    def undefined(self) -> str | None:
        """Why these rows have no NE, in words."""
        return why_undefined(
            float(self.weight @ (1 - self.label)), float(self.weight @ self.label), len(self.label)
        )

    def loss(self, probability: Floats) -> Floats:
        """Weighted cross entropy (nats) summed over the rows of each unit, `[G]`."""
        return np.bincount(self.unit, self.weight * cross_entropy(self.label, probability)).astype(np.float64)

    def ne(self, probability: Floats, rows: NDArray[np.bool_] | None = None) -> float:
        """NE of these rows, or some of them, over the entropy of their own base rate; NaN if it is undefined."""
        rows = np.ones(len(self.label), np.bool_) if rows is None else rows
        label, weight = self.label[rows], self.weight[rows]
        negatives, positives = float(weight @ (1 - label)), float(weight @ label)
        if why_undefined(negatives, positives, len(label)):
            return float("nan")
        loss = float(weight @ cross_entropy(label, probability[rows])) / (negatives + positives)
        return loss / binary_entropy(positives / (negatives + positives))


def lost(
    base: Mapping[str, Floats], permuted: Iterable[Mapping[str, Floats]], seed: int
) -> list[dict[str, Lost]]:
    """What each output loses by each permutation, from the losses of the units.

    NE is cross entropy over the entropy of the base rate, which a resample and its permutation share, so the loss is
    100 (CE_permuted / CE - 1). All are compared on the same resamples of units: of those whose rows are scored. Whose
    values these get isn't resampled.

    Args:
        base: of each output, `Evaluated.loss`.
        permuted: the same of permuted rows, for each permutation.
        seed: of the resampling.
    """
    permuted = list(permuted)
    outputs = list(base)
    sums = np.stack([losses[output] for losses in [base, *permuted] for output in outputs])  # [(1 + F) O, G]

    def percent(sums: Floats) -> Floats:
        each = sums.reshape(1 + len(permuted), len(outputs), -1)
        return (100 * (each[1:] / each[:1] - 1)).reshape(len(permuted) * len(outputs), -1)

    points = percent(sums.sum(axis=1, keepdims=True)).reshape(len(permuted), len(outputs))
    resampled = bootstrap(sums, percent, seed=seed)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=1).reshape(2, len(permuted), len(outputs))
    return [
        {
            output: Lost(float(points[i, j]), float(low[i, j]), float(high[i, j]))
            for j, output in enumerate(outputs)
        }
        for i in range(len(permuted))
    ]
