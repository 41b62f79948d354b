"""The chance in which groups were drawn for evaluation: sums over them, resampled."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
MAX_UNITS = 20_000
"""Most units that are resampled; more groups than this are first summed into random blocks."""

CHUNK = 1 << 22
"""Most draws held in memory at once."""


def bootstrap(
    sums: Floats,
    statistic: Callable[[Floats], Floats],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    max_units: int = MAX_UNITS,
) -> Floats:
    """Resampled values `[m, resamples]` of a statistic `[k, R] -> [m, R]` of the sums over units.

    `sums` is `[k, G]`: what each of the G units adds to the sums. Units are drawn with replacement.
    """
    rng = np.random.default_rng(seed)
    if sums.shape[1] > max_units:
        # Equal random blocks keep the variance of the sum to a factor 1 - 1/max_units, at a bounded cost.
        block = rng.permutation(sums.shape[1]) % max_units
        sums = np.stack([np.bincount(block, values) for values in sums])
    num_units = sums.shape[1]
    chunk = max(1, CHUNK // num_units)
    values = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(num_units, size=(size, num_units)) + num_units * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num_units).reshape(size, num_units)
        values.append(statistic(sums @ times.T.astype(np.float64)))
    return np.concatenate(values, axis=-1)
