"""Paired bootstrap of the gain in normalized entropy (NE) between two models on the same evaluation rows.

NE gain (%) = 100 (NE_new - NE_base) / NE_base; negative is better. NE is cross entropy over the entropy of
the base rate, and both models of a resample share its base rate, so the gain is 100 (CE_new / CE_base - 1).
The interval covers the chance in which rows were drawn for evaluation, not in how the models were trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.errors import UserError
from trainer.metrics import cross_entropy

Array = NDArray[Any]

RESAMPLES = 2000
MAX_UNITS = 100_000
"""Most units that are resampled; more groups than this are first summed into random blocks."""

CHUNK = 1 << 22
"""Most draws held in memory at once."""


class Gain(NamedTuple):
    """NE gain in percent (negative = better) and its 95 % percentile interval."""

    point: float
    low: float
    high: float


def ne_gain(
    base: Sequence[Path],
    new: Sequence[Path],
    *,
    column: str = "fused",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Gain:
    """NE gain of `new` over `base`, with its interval from resampled groups (rows, where there is no group).

    Args:
        base: Predictions (Parquet) of the baseline on one split, a file per training seed; cross entropies
            are averaged over them before they are compared.
        new: Predictions of the other model on the same rows, likewise.
        column: The probabilities to compare.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        UserError: a file cannot be read, holds a NaN, or was made from other rows than the first one.
    """
    reference = read_predictions(base[0])
    unit = np.unique(reference.get("group", reference["row"]), return_inverse=True)[1]
    base_sums, new_sums = (
        np.mean([_unit_sums(path, base[0], reference, column, unit) for path in paths], axis=0)
        for paths in (base, new)
    )
    if not base_sums.sum() > 0:
        raise UserError(f"{base[0]}: no row has a weight, so there is no NE to compare; evaluate more rows")
    return bootstrap_gain(base_sums, new_sums, resamples=resamples, seed=seed)


def bootstrap_gain(
    base: NDArray[np.float64],
    new: NDArray[np.float64],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    max_units: int = MAX_UNITS,
) -> Gain:
    """NE gain from summed cross entropies (nats) of each unit, `[G]` for both models, and its interval."""
    rng = np.random.default_rng(seed)
    point = _gain(base.sum(), new.sum())
    if len(base) > max_units:
        # Equal random blocks keep the variance of the sum to a factor 1 - 1/max_units, at a bounded cost.
        block = rng.permutation(len(base)) % max_units
        base, new = _sum_by(block, base), _sum_by(block, new)
    num_units = len(base)
    gains = np.empty(resamples)
    chunk = max(1, CHUNK // num_units)
    for start in range(0, resamples, chunk):
        drawn = rng.integers(num_units, size=(min(chunk, resamples - start), num_units))
        gains[start : start + chunk] = _gain(base[drawn].sum(axis=1), new[drawn].sum(axis=1))
    low, high = np.percentile(gains, [2.5, 97.5])
    return Gain(float(point), float(low), float(high))


def read_predictions(path: Path) -> dict[str, Array]:
    """Columns of a run's `predictions/<split>.parquet`, each `[N]`; raises UserError if unreadable."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path}: cannot read predictions ({' '.join(str(error).split())}); repeat the run"
        ) from None
    return {name: table[name].to_numpy() for name in table.column_names}


def _unit_sums(
    path: Path, reference_path: Path, reference: dict[str, Array], column: str, unit: Array
) -> NDArray[np.float64]:
    """Weighted cross entropy (nats) of `column`, summed over the rows of each unit: `[G]`."""
    predictions, empty = read_predictions(path), np.empty(0)
    for name in ("row", "label", "weight", "group"):
        if not np.array_equal(predictions.get(name, empty), reference.get(name, empty)):
            raise UserError(
                f"{path}: column {name!r} differs from {reference_path}; only runs on the same data can be "
                "compared: repeat the one whose data is out of date"
            )
    if column not in predictions:
        raise UserError(f"{path}: no column {column!r}; it has {', '.join(predictions)}")
    if np.isnan(predictions[column]).any():
        raise UserError(f"{path}: column {column!r} has NaN; the run diverged, so lower its learning rate")
    losses = cross_entropy(predictions["label"], predictions[column])
    return _sum_by(unit, predictions["weight"] * losses)


def _sum_by(unit: Array, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.bincount(unit, values), dtype=np.float64)


def _gain(base: Any, new: Any) -> Any:
    return 100 * (new / base - 1)
