"""Figures along training, against SciPy and loops."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cetnet.benchmarks.study.report.bootstrap import student_t
from cetnet.benchmarks.study.report.curves import gain_curve, read_curve


def test_student_t() -> None:
    for freedom in (1, 2, 3, 9, 30):
        assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-3)


def test_gains_pair_seeds_and_examples(tmp_path: Path) -> None:
    def write(name: str, ne: dict[int, dict[int, float]]) -> dict[int, Path]:
        folders = {seed: tmp_path / name / str(seed) for seed in ne}
        for seed, series in ne.items():
            folders[seed].mkdir(parents=True)
            lines = [
                json.dumps({"kind": "train", "rows": rows, "ne": value}) for rows, value in series.items()
            ]
            (folders[seed] / "metrics.jsonl").write_text("\n".join(lines))
        return folders

    base = read_curve(write("base", {1: {10: 1.0, 20: 0.8}, 2: {10: 0.9, 20: 0.7}}), "ne")
    new = read_curve(
        write("new", {2: {5: 2.0, 15: 0.6, 20: 0.63}, 3: {5: 2.0, 15: 0.5, 20: 0.5, 40: 0.4}}), "ne"
    )
    gain = gain_curve(new, base)
    assert gain.seeds == (2,)  # 3 has no baseline
    np.testing.assert_allclose(gain.rows, [15, 20])  # the baseline was not measured at 5
    np.testing.assert_allclose(gain.values, [[100 * (0.6 / 0.8 - 1), 100 * (0.63 / 0.7 - 1)]])
