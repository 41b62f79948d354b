"""What one model gains over another on the same evaluation rows, in NE, AUC and gAUC, with 95 % intervals.

NE gain (%) = 100 (NE_new - NE_base) / NE_base; negative is better. NE is cross entropy over the entropy of
the base rate, and both models of a resample share its base rate, so the gain is 100 (CE_new / CE_base - 1).
AUC and gAUC gains are differences in percentage points, 100 (AUC_new - AUC_base); positive is better.

The intervals cover the chance in which groups were drawn for evaluation (rows, where there are none; a row whose
group is null is a unit of its own), by a paired bootstrap over groups, and with several training seeds the spread
between these (`intervals.py`). The bootstrap is of the mean over the seeds, and so has a part of that spread in it:
what the seeds make of a group differently. It is taken out: of the variance V of the mean over n seeds and V_1, the
mean of the seeds' own variances, what all seeds share is (n V - V_1) / (n - 1).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cetnet.benchmarks.study.report.calibration import calibrated
from cetnet.benchmarks.study.report.intervals import LEVEL, Estimate, Gain, nominal_level, student_t
from cetnet.trainer.bootstrap import RESAMPLES, bootstrap
from cetnet.trainer.errors import UserError
from cetnet.trainer.metrics import binary_entropy, cross_entropy, group_numbers, why_undefined

Array = NDArray[Any]
Floats = NDArray[np.float64]


class Gains(NamedTuple):
    """Gains of one model over another: NE and calibrated NE in percent (negative is better), AUC and gAUC in
    percentage points."""

    ne: Estimate
    calibrated: Estimate
    auc: Estimate
    gauc: Estimate


class Baseline:
    """A model that others are compared with.

    Args:
        paths: Its predictions (Parquet) of one split, by training seed.
        looks: Numbers of seeds at which gains are looked at, as for `Estimate`.

    Raises:
        UserError: a file cannot be read, holds a NaN, or was made from other rows than the first one.
    """

    def __init__(self, paths: Mapping[int, Path], looks: tuple[int, ...] = ()) -> None:
        self._looks = looks
        self._path = next(iter(paths.values()))
        self._rows = read_predictions(self._path)
        self._unit = _units(self._rows)
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
                sums.append(np.stack([*base[:2], *(new - base)[:4], base[4]]))
        return estimates(np.stack(sums), self._looks, resamples=resamples, seed=seed) if sums else None

    def _unit_scores(self, path: Path, column: str) -> Floats:
        """Of a predictions file, summed over the rows of each unit, `[5, G]`.

        Cross entropy (nats), as it is and calibrated; the unit's part in the AUC; and in the gAUC, which is the sum
        of these divided by that of the fifth, the weight of the groups that have an AUC.
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
            return np.full((5, 1), np.nan)
        label, weight = self._rows["label"], self._rows["weight"]
        loss = np.bincount(self._unit, weight * cross_entropy(label, probability))
        auc = unit_auc(label, probability, weight, self._unit)
        grouped = np.full((2, len(auc)), np.nan)
        if "group" in self._rows:
            grouped = group_auc(label, probability, weight, self._unit)
        fitted = calibrated(path, column, predictions, self._unit)
        return np.stack([loss, np.bincount(self._unit, weight * cross_entropy(label, fitted)), auc, *grouped])


def _units(rows: Mapping[str, Array]) -> Array:
    """The unit of each row, numbered: its group, or the row itself, `[N]`."""
    return np.unique(rows.get("group", rows["row"]), return_inverse=True)[1]


def calibrated_ne(path: Path, columns: Sequence[str]) -> dict[str, float]:
    """NE of a run's outputs, the bias of their logits fitted on other rows (`calibration.py`); NaN where undefined.

    Raises:
        UserError: the file cannot be read.
    """
    rows = read_predictions(path)
    label, weight, unit = rows["label"], rows["weight"], _units(rows)
    negatives, positives = float(weight @ (1 - label)), float(weight @ label)
    if why_undefined(negatives, positives, len(label)):
        return dict.fromkeys(columns, math.nan)
    least = (negatives + positives) * binary_entropy(positives / (negatives + positives))
    return {
        column: float(weight @ cross_entropy(label, calibrated(path, column, rows, unit))) / least
        for column in columns
    }


def estimates(
    sums: Floats, looks: tuple[int, ...] = (), *, resamples: int = RESAMPLES, seed: int = 0
) -> Gains:
    """Gains and how sure they are, from sums over units, `[seeds, 7, G]`.

    The seven are the baseline's cross entropy, as it is and calibrated; what the other model has more of these two,
    of AUC and of gAUC; and the weight of the gAUC. Sums of the seeds are averaged before they are compared.
    """
    mean = sums.mean(axis=0)
    point = _gains(mean.sum(axis=1))  # [4]
    resampled = bootstrap(mean, _gains, resamples=resamples, seed=seed)  # [4, R]
    low, high = np.percentile(resampled, [2.5, 97.5], axis=1)
    below, above = np.maximum(point - low, 0), np.maximum(high - point, 0)
    if len(sums) > 1:
        # [4]: the part of the bootstrap's deviation that the seeds share
        of_mean, of_seeds = _variance(mean), np.mean([_variance(of_seed) for of_seed in sums], axis=0)
        shared = (len(sums) * of_mean - of_seeds) / (len(sums) - 1)
        share = np.sqrt(np.maximum(shared, 0) / np.where(of_mean == 0, 1, of_mean))
        below, above = below * share, above * share
    each = _gains(sums.sum(axis=2).T)  # [4, seeds]
    return Gains(
        *(
            Estimate(float(point[i]), each[i], float(below[i]), float(above[i]), looks)
            for i in range(len(point))
        )
    )


def _variance(sums: Floats) -> Floats:
    """Variance of each gain over the choice of units, `[7, G]` -> `[4]`, to first order."""
    num_units = sums.shape[1]
    base, base_calibrated, *numerators, weight = sums
    numerator = np.stack(numerators)
    denominator = np.stack([base, base_calibrated, np.full(num_units, 1 / num_units), weight])
    whole = denominator.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        ratio = numerator.sum(axis=1, keepdims=True) / whole
        error = 100 * (numerator - ratio * denominator) / whole
    return (error**2).sum(axis=1) * num_units / max(num_units - 1, 1)


def against_itself(losses: Floats, looks: tuple[int, ...] = ()) -> Gain:
    """NE gain of every second run of a model over the others: of nothing over nothing.

    Args:
        losses: cross entropy of each on the same rows, 4 or more.
        looks: as for `Estimate`.
    """
    base, new = losses[::2], losses[1::2]
    freedom = len(losses) - 2
    deviations = [of_half - of_half.mean() for of_half in (base, new)]
    pooled = (np.concatenate(deviations) ** 2).sum() / freedom
    error = (pooled * (1 / len(base) + 1 / len(new))) ** 0.5
    point, half = new.mean() - base.mean(), student_t(freedom, nominal_level(looks, LEVEL)) * error
    return Gain(*(float(100 * value / base.mean()) for value in (point, point - half, point + half)))


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
    """Gains `[4, ...]` from the sums of `estimates`, `[7, ...]`."""
    base, base_calibrated, loss, calibrated_loss, auc, grouped, weight = sums
    with np.errstate(invalid="ignore"):
        return 100 * np.stack([loss / base, calibrated_loss / base_calibrated, auc, grouped / weight])


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
