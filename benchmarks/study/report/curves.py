"""Figures along training, from the runs' metrics.jsonl: NE, and what it gains over a baseline's."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cetnet.trainer.errors import UserError


class Curve(NamedTuple):
    """A figure along training: number of examples `[T]`, values `[seeds, T]`, and which seeds these are."""

    seeds: tuple[int, ...]
    rows: NDArray[np.float64]
    values: NDArray[np.float64]


def read_curve(folders: Mapping[int, Path], key: str) -> Curve:
    """`key` of metrics.jsonl where every seed has it, as one curve; empty if nowhere. `folders` are by seed."""
    seeds = [_read_series(folder / "metrics.jsonl", key) for folder in folders.values()]
    rows = sorted(set.intersection(*(set(series) for series in seeds)))
    values = np.array([[series[n] for n in rows] for series in seeds], dtype=np.float64)
    return Curve(tuple(folders), np.array(rows, dtype=np.float64), values)


def _read_series(path: Path, key: str) -> dict[int, float]:
    """Number of examples -> value, from the training records; of a step done twice (resumed), the last."""
    series = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            value = record.get(key)
            if record["kind"] == "train" and value is not None and math.isfinite(value):
                series[record["rows"]] = value
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); repeat the run") from None
    return series


def gain_curve(curve: Curve, base: Curve) -> Curve:
    """Gain in percent over the baseline's curve with the same seed, of the seeds and examples that both have."""
    # Variants whose batches differ log at other points: compare where both are known.
    known = (curve.rows >= base.rows.min(initial=np.inf)) & (curve.rows <= base.rows.max(initial=0))
    rows = curve.rows[known]
    before = dict(zip(base.seeds, base.values, strict=True)) if len(rows) else {}
    paired = {
        seed: 100 * (values[known] / np.interp(rows, base.rows, before[seed]) - 1)
        for seed, values in zip(curve.seeds, curve.values, strict=True)
        if seed in before
    }
    return Curve(tuple(paired), rows, np.array(list(paired.values())))
