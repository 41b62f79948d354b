"""What one model gains over another on the same evaluation rows, in NE, AUC and gAUC, with 95 % intervals.

NE gain (%) = 100 (NE_new - NE_base) / NE_base; negative is better. NE is cross entropy over the entropy of
the base rate, and both models of a resample share its base rate, so the gain is 100 (CE_new / CE_base - 1).
AUC and gAUC gains are differences in percentage points, 100 (AUC_new - AUC_base); positive is better.

The intervals come from a paired bootstrap over groups (rows, where there are none; a row whose group is null is a
unit of its own), which covers the chance in
which groups were drawn for evaluation. With several training seeds they also cover the spread between these:
Student's t of the mean over the seeds is added to each resample.
"""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cetnet.trainer.bootstrap import RESAMPLES, bootstrap
from cetnet.trainer.errors import UserError
from cetnet.trainer.metrics import cross_entropy, group_numbers, why_undefined

Array = NDArray[Any]
Floats = NDArray[np.float64]

SEED_DRAWS = 50
"""Draws of Student's t for each resample: with few seeds its tails are long."""


class Gain(NamedTuple):
    """A gain and its 95 % interval; NaN where the metric is undefined."""

    point: float
    low: float
    high: float


class Gains(NamedTuple):
    """Gains of one model over another: NE in percent (negative is better), AUC and gAUC in
    percentage points."""

    ne: Gain
    auc: Gain
    gauc: Gain


class Baseline:
    """A model that others are compared with.

    Args:
        paths: Its predictions (Parquet) of one split, by training seed.

    Raises:
        UserError: a file cannot be read, holds a NaN, or was made from other rows than the first one.
    """

    def __init__(self, paths: Mapping[int, Path]) -> None:
        self._path = next(iter(paths.values()))
        self._rows = read_predictions(self._path)
        self._unit = np.unique(self._rows.get("group", self._rows["row"]), return_inverse=True)[1]
        label, weight = self._rows["label"], self._rows["weight"]
        classes = float(weight @ (1 - label)), float(weight @ label)
        self._undefined = why_undefined(*classes, len(label)) is not None
        self._scores = {seed: self._unit_scores(path, "fused") for seed, path in paths.items()}

    def gains(
        self, paths: Mapping[int, Path], column: str = "fused", *, resamples: int = RESAMPLES, seed: int = 0
    ) -> Gains | None:
        """Gains of another model over this one on the seeds that both have; None if there is no such seed.

        NaN if the rows have a single class, or no weight.

        Args:
            paths: Its predictions on the same rows, by training seed.
            column: Its probabilities: `fused`, or a component.
            resamples: Number of bootstrap resamples.
            seed: Seed of the resampling.

        Raises:
            UserError: as for the class.
        """
        sums = []
        for training_seed, base in self._scores.items():
            if training_seed in paths:
                new = self._unit_scores(paths[training_seed], column)
                sums.append(np.stack([base[0], *(new - base)[:3], base[3]]))
        if not sums:
            return None
        if self._undefined:
            return Gains(*[Gain(math.nan, math.nan, math.nan)] * 3)
        return intervals(np.stack(sums), resamples=resamples, seed=seed)

    def _unit_scores(self, path: Path, column: str) -> Floats:
        """Of a predictions file, summed over the rows of each unit, `[4, G]`.

        Cross entropy (nats); the unit's part in the AUC; and in the gAUC, which is the sum of these divided
        by that of the fourth, the weight of the groups that have an AUC.
        """
        predictions, empty = read_predictions(path), np.empty(0)
        for name in ("row", "label", "weight", "group"):
            if not np.array_equal(predictions.get(name, empty), self._rows.get(name, empty)):
                raise UserError(
                    f"{path}: column {name!r} differs from {self._path}; only runs on the same data can be "
                    "compared: repeat the one whose data is out of date"
                )
        if column not in predictions:
            raise UserError(f"{path}: no column {column!r}; it has {', '.join(predictions)}")
        probability = predictions[column]
        if np.isnan(probability).any():
            raise UserError(
                f"{path}: column {column!r} has NaN; the run diverged, so lower its learning rate"
            )
        if self._undefined:
            return np.full((4, 1), math.nan)
        label, weight = self._rows["label"], self._rows["weight"]
        loss = np.bincount(self._unit, weight * cross_entropy(label, probability))
        auc = unit_auc(label, probability, weight, self._unit)
        grouped = np.full((2, len(auc)), np.nan)
        if "group" in self._rows:
            grouped = group_auc(label, probability, weight, self._unit)
        return np.stack([loss, auc, *grouped])


def intervals(sums: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Gains:
    """Gains and their intervals from sums over units, `[seeds, 5, G]`.

    The five are the baseline's cross entropy; what the other model has more of it, of AUC and of gAUC; and the
    weight of the gAUC. Sums of the seeds are averaged before they are compared.
    """
    mean = sums.mean(axis=0)
    point = _gains(mean.sum(axis=1))  # [3]
    resampled = bootstrap(mean, _gains, resamples=resamples, seed=seed)  # [3, R]
    if len(sums) > 1:
        error = _gains(sums.sum(axis=2).T).std(axis=1, ddof=1) / len(sums) ** 0.5
        t = np.random.default_rng((seed, 1)).standard_t(len(sums) - 1, (SEED_DRAWS, 1, resamples))
        resampled = (resampled + error[:, None] * t).swapaxes(0, 1).reshape(3, -1)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=1)
    return Gains(*(Gain(*map(float, bounds)) for bounds in zip(point, low, high, strict=True)))


@cache
def student_t(freedom: int) -> float:
    """97.5 % quantile of Student's t with so many degrees of freedom, from a million draws (to half a percent)."""
    draws = np.random.default_rng(freedom).standard_t(freedom, 1_000_000)
    return float(np.percentile(np.abs(draws), 95))


def unit_auc(label: Array, score: Array, weight: Array, unit: Array) -> Floats:
    """Parts of the units in the AUC, `[G]`: their sum is the AUC; resampled, its linear approximation.

    That is how far the unit's rows are placed above or below the mean among the rows of the other class, the
    structural components of DeLong et al. (1988), summed over units as in Obuchowski (1997).
    """
    positives, negatives = weight @ label, weight @ (1 - label)
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = _won(label, score, weight, np.zeros(len(label), np.int64)) * weight / (positives * negatives)
        auc = (pairs * label).sum()
        expected = auc * weight / np.where(label == 1, positives, negatives)
    return np.bincount(unit, pairs - expected) + auc / (unit.max() + 1)


def group_auc(label: Array, score: Array, weight: Array, group: Array) -> Floats:
    """AUC times weight, and weight, of each group that has both classes, `[2, G]`; zeros for the others."""
    positives, negatives = np.bincount(group, weight * label), np.bincount(group, weight * (1 - label))
    won = np.bincount(group, weight * label * _won(label, score, weight, group))
    both = positives * negatives > 0
    total = np.where(both, positives + negatives, 0)
    return np.stack(
        [np.divide(won * total, positives * negatives, out=np.zeros_like(won), where=both), total]
    )


def _won(label: Array, score: Array, weight: Array, group: Array) -> Floats:
    """For each row, the weight of its group's rows of the other class that it is ordered rightly to, ties half."""
    order = np.lexsort((score, group))
    score, group, label, weight = (values[order] for values in (score, group, label, weight))
    new_tie = np.concatenate([[True], (np.diff(score) != 0) | (np.diff(group) != 0)])
    starts, tie = np.flatnonzero(new_tie), new_tie.cumsum() - 1
    positive, negative = (
        np.add.reduceat(weight * label, starts),
        np.add.reduceat(weight * (1 - label), starts),
    )
    group = group[starts]
    below = negative.cumsum() - negative
    below -= below[np.searchsorted(group, group)]
    above = positive.cumsum()
    above = above[np.searchsorted(group, group, "right") - 1] - above
    won = np.empty(len(label))
    won[order] = np.where(label == 1, (below + negative / 2)[tie], (above + positive / 2)[tie])
    return won


def _gains(sums: Floats) -> Floats:
    """Gains `[3, ...]` from the sums of `intervals`, `[5, ...]`."""
    base, loss, auc, grouped, weight = sums
    with np.errstate(invalid="ignore"):
        return 100 * np.stack([loss / base, auc, grouped / weight])


def read_predictions(path: Path) -> dict[str, Array]:
    """Columns of a run's `predictions/<split>.parquet`, each `[N]`; raises UserError if unreadable.

    Groups are numbered, one whose value is null by itself; label and weight are float64.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path}: cannot read predictions ({' '.join(str(error).split())}); repeat the run"
        ) from None
    columns = {name: table[name].to_numpy() for name in table.column_names}
    columns |= {name: columns[name].astype(np.float64) for name in ("label", "weight") if name in columns}
    if "group" in columns:
        missing = table["group"].is_null().to_numpy()
        columns["group"] = group_numbers(table["group"].fill_null(0).to_numpy(), missing)
    return columns
