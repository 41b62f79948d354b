"""A bias fitted on other rows, against scikit-learn and a search."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from cetnet.benchmarks.study.report.bootstrap import calibrated_ne
from cetnet.benchmarks.study.report.calibration import fit_bias


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(-8, 8), st.floats(0, 12))
def test_no_other_bias_has_less_loss(seed: int, shift: float, spread: float) -> None:
    rng = np.random.default_rng(seed)
    label = np.concatenate([[0, 1], (rng.random(60) < 0.3)]).astype(float)
    logit, weight = rng.normal(shift, spread, 62), rng.uniform(0.1, 2, 62)
    bias = fit_bias(label, logit, weight)
    assert bias is not None
    assert weight @ sigmoid(logit + bias) == pytest.approx(weight @ label, rel=1e-6)  # where the slope is 0

    def loss(b: float) -> float:
        return float(weight @ np.logaddexp(0, np.where(label == 1, -1, 1) * (logit + b)))

    assert loss(bias) <= min(loss(bias + step) for step in (-1, -0.01, 0.01, 1))


def test_a_single_class_has_no_bias() -> None:
    assert fit_bias(np.ones(5), np.zeros(5), np.ones(5)) is None
    assert fit_bias(np.array([0.0, 1]), np.zeros(2), np.zeros(2)) is None


def write(path: Path, rng: np.random.Generator, shift: float, rows: int = 4000) -> np.ndarray:
    """Predictions whose logits are all too high by `shift`; returns the truth's."""
    truth = rng.normal(-1, 1, rows)
    columns = {
        "row": np.arange(rows),
        "label": (rng.random(rows) < sigmoid(truth)).astype(np.float32),
        "weight": np.ones(rows, np.float32),
        "group": rng.integers(0, 500, rows),
        "fused": sigmoid(truth + shift),
    }
    pq.write_table(pa.table(columns), path)
    return truth


def ne(path: Path, logit: np.ndarray) -> float:
    label = pq.read_table(path)["label"].to_numpy()
    return log_loss(label, sigmoid(logit)) / log_loss(label, np.full(len(label), label.mean()))


def test_calibrated_on_validation_if_it_is_there_else_crosswise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    test = tmp_path / "test.parquet"
    truth = write(test, rng, 0.7)
    crosswise = calibrated_ne(test, ["fused"])["fused"]
    assert crosswise == pytest.approx(ne(test, truth), rel=0.002)
    write(tmp_path / "validation.parquet", rng, 1.2)  # of another shift: taken away too much
    expected = ne(test, truth + 0.7 - 1.2)
    assert calibrated_ne(test, ["fused"])["fused"] == pytest.approx(expected, rel=0.01)
    assert expected > crosswise + 0.01
    # On itself would be no test; what can't be read, or fitted on, doesn't count.
    validation = calibrated_ne(tmp_path / "validation.parquet", ["fused"])["fused"]
    assert validation < ne(tmp_path / "validation.parquet", np.full(4000, -1.0))
    pq.write_table(pa.table({"label": [0.0, 1.0], "weight": [1.0, 1.0]}), tmp_path / "validation.parquet")
    assert calibrated_ne(test, ["fused"])["fused"] == crosswise
    for content in (b"", (tmp_path / "test.parquet").read_bytes()[:-9]):
        (tmp_path / "validation.parquet").write_bytes(content)
        assert calibrated_ne(test, ["fused"])["fused"] == crosswise


def test_rows_of_a_single_class_have_none(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    columns = {"row": [0, 1], "label": [1.0, 1.0], "weight": [1.0, 1.0], "fused": [0.5, 0.6]}
    pq.write_table(pa.table(columns), path)
    assert np.isnan(calibrated_ne(path, ["fused"])["fused"])
