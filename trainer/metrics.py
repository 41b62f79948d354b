"""Exact evaluation metrics over a whole split, in NumPy and double precision."""

import numpy as np
from numpy.typing import NDArray

LABELS = {"ne": "NE", "auc": "AUC", "gauc": "gAUC", "logloss": "LogLoss", "calibration": "calibration"}
"""What people call them."""


def binary_metrics(
    label: NDArray, probability: NDArray, weight: NDArray, group: NDArray | None = None
) -> dict[str, float]:
    """Metrics of predicted probabilities.

    Args:
        label: `[n]`, 0 or 1.
        probability: `[n]`.
        weight: `[n]`, at least 0.
        group: `[n]` integers for gAUC, of `group_numbers`; without it gAUC is left out.

    Returns:
        `ne` (LogLoss over the entropy of these labels' own base rate; He et al. 2014, eq. 1), `logloss`
        (nats), `auc`, `gauc`, `calibration` (sum of predictions over sum of labels). NaN where undefined:
        `why_missing` says why.
    """
    # Sorting would give NaN a place in the order, which it hasn't.
    if not len(label) or np.isnan(probability).any():
        return {name: float("nan") for name in LABELS if name != "gauc" or group is not None}
    label, weight = label.astype(np.float64), weight.astype(np.float64)
    # Added up apart, so that a single class gives a base rate of exactly 0 or 1.
    positives, negatives = float(weight @ label), float(weight @ (1 - label))
    loss = _divide(float(weight @ cross_entropy(label, probability)), positives + negatives)
    metrics = {
        "ne": _divide(loss, binary_entropy(_divide(positives, positives + negatives))),
        "logloss": loss,
        "auc": auc(label, probability, weight),
        "calibration": _divide(float(weight @ probability.astype(np.float64)), positives),
    }
    if group is not None:
        metrics["gauc"] = grouped_auc(label, probability, weight, group)
    return metrics


def why_missing(
    metrics: dict[str, float], label: NDArray, probability: NDArray, weight: NDArray
) -> str | None:
    """Which of the metrics that `binary_metrics` made of these rows are NaN and why, in words; None if none is."""
    why = why_undefined(float(weight @ (1 - label)), float(weight @ label), len(label))
    if broken := int(np.isnan(probability).sum()):
        why = f"{broken:,} predictions are NaN, as of a model that diverged"
    names = [title for name, title in LABELS.items() if np.isnan(metrics.get(name, 0))]
    return f"no {', '.join(names)} (-): {why or 'no group has rows of both labels'}" if names else None


def why_undefined(negatives: float, positives: float, rows: int = 1) -> str | None:
    """Why NE and AUC of rows with these weights don't exist, in words; None if they do."""
    if not rows:
        return "there is no good row"
    if not negatives and not positives:
        return "no row has a weight"
    if (rate := positives / (negatives + positives)) in (0, 1):
        return f"every row that counts has the label {rate:.0f}"
    return None


def group_numbers(group: NDArray, missing: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Groups numbered from 0; a row without one is a group of its own, which has no AUC.

    Args:
        group: `[n]`, anything where `missing`.
        missing: `[n]`.
    """
    numbers = np.empty(len(group), np.int64)
    known, numbers[~missing] = np.unique(group[~missing], return_inverse=True)
    numbers[missing] = len(known) + np.arange(missing.sum())
    return numbers


def cross_entropy(label: NDArray, probability: NDArray) -> NDArray[np.float64]:
    """Binary cross entropy of each row, in nats; probabilities are kept one rounding error from 0 and 1."""
    eps = np.finfo(np.float64).eps
    p = np.clip(probability.astype(np.float64), eps, 1 - eps)
    return -(label * np.log(p) + (1 - label) * np.log1p(-p))


def binary_entropy(p: float) -> float:
    """Entropy of a Bernoulli variable, in nats."""
    return 0.0 if p in (0, 1) else float(-p * np.log(p) - (1 - p) * np.log1p(-p))


def auc(label: NDArray, score: NDArray, weight: NDArray) -> float:
    """Weighted area under the ROC curve, ties counted half; NaN if there is a single class."""
    return _divide(*_won_pairs(label, score, weight, np.zeros(len(label), np.int64))[:, 0])


def grouped_auc(label: NDArray, score: NDArray, weight: NDArray, group: NDArray) -> float:
    """Mean AUC of the groups that have both classes, weighted by their rows (Zhou et al. 2018, eq. 7)."""
    _, index = np.unique(group, return_inverse=True)
    won, pairs = _won_pairs(label, score, weight, index)
    both = pairs > 0
    return _divide(
        (won[both] / pairs[both]) @ np.bincount(index, weights=weight)[both],
        np.bincount(index, weights=weight)[both].sum(),
    )


def _won_pairs(label: NDArray, score: NDArray, weight: NDArray, group: NDArray) -> NDArray[np.float64]:
    """`[2, groups]`: weight of (positive, negative) pairs ordered rightly, a tie as half; and of all pairs."""
    order = np.lexsort((score, group))
    score, group = score[order], group[order]
    positive, negative = (label * weight)[order], ((1 - label) * weight)[order]
    new_tie = np.concatenate([[True], (np.diff(score) != 0) | (np.diff(group) != 0)])
    starts = np.flatnonzero(new_tie)
    positive, negative = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    group = group[starts]
    before = np.cumsum(negative) - negative
    first_of_group = np.searchsorted(group, group)
    won = np.bincount(group, positive * (before - before[first_of_group] + negative / 2))
    return np.stack([won, np.bincount(group, positive) * np.bincount(group, negative)])


def _divide(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")
