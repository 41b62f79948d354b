"""Predictions with the bias of their logits fitted on other rows than those that they are scored on.

How far all of a model's predictions are off together is luck of the last steps more than of the model, and one
number puts it right wherever the model is used: NE without it differs less between seeds, and picks the better model
more often (arXiv 2401.16692).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cetnet.trainer.metrics import why_undefined

Floats = NDArray[np.float64]

HELD_OUT = "validation.parquet"
"""Predictions of the split that the bias is fitted on, beside those that it is added to."""


def calibrated(path: Path, column: str, rows: dict[str, NDArray[Any]], unit: NDArray[np.int64]) -> Floats:
    """A run's probabilities `[N]` on a split, with the bias of their logits fitted elsewhere.

    On the run's predictions of the validation split, if it has them; else on the half of the units that a row's own
    isn't in.

    Args:
        path: the predictions, `<split>.parquet`.
        column: `fused`, or a component.
        rows: what is in it; `rows[column]` is without NaN.
        unit: `[N]`, numbers of the units.

    Returns:
        NaN if there is nothing to fit it on: rows of a single class.
    """
    logit = _logit(rows[column])
    held_out = path.with_name(HELD_OUT)
    if path != held_out and (bias := _bias_of(held_out, column)) is not None:
        return _sigmoid(logit + bias)
    half = np.random.default_rng(0).permutation(int(unit.max(initial=0)) + 1)[unit] % 2 == 0
    found = np.empty(len(logit))
    for fitted in (half, ~half):
        bias = fit_bias(rows["label"][fitted], logit[fitted], rows["weight"][fitted])
        found[~fitted] = np.nan if bias is None else _sigmoid(logit[~fitted] + bias)
    return found


def fit_bias(label: NDArray[Any], logit: Floats, weight: NDArray[Any]) -> float | None:
    """What is to be added to logits `[n]` for the least weighted cross entropy, by Newton's method; None if the
    rows have a single class."""
    negatives, positives = float(weight @ (1 - label)), float(weight @ label)
    if why_undefined(negatives, positives, len(label)):
        return None
    expected = float(weight @ _sigmoid(logit))
    # Where every prediction is the same this is the answer.
    bias = np.log(positives / negatives) - np.log(expected / (negatives + positives - expected))
    for _ in range(50):
        p = _sigmoid(logit + bias)
        # At most 1 a step: where nearly all p are 0 or 1 the curvature is next to nothing.
        step = np.clip((positives - weight @ p) / max(float(weight @ (p * (1 - p))), 1e-300), -1, 1)
        bias += step
        if abs(step) < 1e-10:
            break
    return float(bias)


def _bias_of(path: Path, column: str) -> float | None:
    """The bias fitted on a predictions file; None if it isn't there, or can't be fitted on."""
    try:
        table = pq.read_table(path, columns=["label", "weight", column])
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return None
    label, weight, probability = (
        table[name].to_numpy().astype(np.float64) for name in ("label", "weight", column)
    )
    if column not in table.column_names or np.isnan(probability).any():
        return None
    return fit_bias(label, _logit(probability), weight)


def _logit(probability: NDArray[Any]) -> Floats:
    eps = np.finfo(np.float64).eps
    p = np.clip(probability.astype(np.float64), eps, 1 - eps)
    return np.log(p) - np.log1p(-p)


def _sigmoid(logit: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logit))
