"""Exact metrics against scikit-learn and against their definitions."""

import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.metrics import LABELS, binary_metrics, group_numbers, why_missing
from cetnet.trainer.scoring import Scores
from tests.data import write_dataset


@dataclass(frozen=True)
class Scored:
    label: NDArray[np.int8]
    probability: NDArray[np.float64]
    weight: NDArray[np.float64]
    group: NDArray[np.int64]

    def metrics(self) -> dict[str, float]:
        return binary_metrics(self.label, self.probability, self.weight, self.group)


# Few distinct probabilities, so that there are ties; zero weights; few groups, some of a single class.
rows = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from([1e-6, 0.1, 0.25, 0.25 + 1e-12, 0.5, 0.9]) | st.floats(1e-9, 1 - 1e-9),
        st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.5]),
        st.integers(-2, 3),
    ),
    min_size=1,
    max_size=60,
)


def scored(values: list[tuple[int, float, float, int]]) -> Scored:
    label, probability, weight, group = zip(*values, strict=True)
    return Scored(np.array(label, np.int8), np.array(probability), np.array(weight), np.array(group))


def classes(data: Scored) -> set[int]:
    """Labels of the rows that count."""
    return set(data.label[data.weight > 0].tolist())


def close(value: float) -> float:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(rows.map(scored))
def test_auc_and_logloss_are_those_of_sklearn(data: Scored) -> None:
    metrics = data.metrics()
    if not data.weight.any():
        assert math.isnan(metrics["auc"])
        assert math.isnan(metrics["logloss"])
        return
    expected = log_loss(data.label, data.probability, sample_weight=data.weight, labels=[0, 1])
    assert metrics["logloss"] == close(expected)
    if len(classes(data)) == 1:
        assert math.isnan(metrics["auc"])
    else:
        assert metrics["auc"] == close(roc_auc_score(data.label, data.probability, sample_weight=data.weight))


@settings(max_examples=300, deadline=None)
@given(rows.map(scored))
def test_gauc_is_the_mean_over_groups_with_both_classes(data: Scored) -> None:
    total = weights = 0.0
    for group in np.unique(data.group):
        mine = data.group == group
        part = Scored(data.label[mine], data.probability[mine], data.weight[mine], data.group[mine])
        if len(classes(part)) == 2:
            auc = roc_auc_score(part.label, part.probability, sample_weight=part.weight)
            total += auc * part.weight.sum()
            weights += part.weight.sum()
    gauc = data.metrics()["gauc"]
    assert gauc == close(total / weights) if weights else math.isnan(gauc)


@settings(max_examples=300, deadline=None)
@given(rows.map(scored))
def test_ne_and_calibration_from_their_definitions(data: Scored) -> None:
    metrics = data.metrics()
    if 1 not in classes(data):
        assert math.isnan(metrics["calibration"])
    else:
        positives = sum(w for y, w in zip(data.label, data.weight, strict=True) if y)
        assert metrics["calibration"] == close(sum(data.probability * data.weight) / positives)
    if len(classes(data)) < 2:
        assert math.isnan(metrics["ne"])
        return
    base = sum(data.label * data.weight) / sum(data.weight)
    losses = [-math.log(p if y else 1 - p) for y, p in zip(data.label, data.probability, strict=True)]
    mean_loss = sum(losses * data.weight) / sum(data.weight)
    entropy = -base * math.log(base) - (1 - base) * math.log(1 - base)
    assert metrics["ne"] == close(mean_loss / entropy)


def test_many_rows() -> None:
    rng = np.random.default_rng(0)
    n = 50_000
    probability = rng.integers(1, 1000, n) / 1000
    data = Scored(
        (rng.random(n) < probability).astype(np.int8), probability, rng.random(n), rng.integers(0, 500, n)
    )
    metrics = data.metrics()
    assert metrics["auc"] == close(roc_auc_score(data.label, probability, sample_weight=data.weight))
    assert metrics["logloss"] == close(log_loss(data.label, probability, sample_weight=data.weight))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("seed", range(10))
def test_a_single_class_has_no_ne_whatever_the_rounding(label: int, seed: int) -> None:
    weight = np.random.default_rng(seed).random(64)
    metrics = binary_metrics(np.full(64, label), np.full(64, 0.3), weight)
    assert math.isnan(metrics["ne"])
    assert math.isnan(metrics["auc"])


def test_predicting_the_base_rate_has_ne_one_and_auc_one_half() -> None:
    label = np.array([1, 0, 0, 0])
    metrics = binary_metrics(label, np.full(4, 0.25), np.ones(4))
    assert metrics == {
        "ne": close(1),
        "logloss": close(metrics["logloss"]),
        "auc": 0.5,
        "calibration": close(1),
    }


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_a_certain_and_wrong_prediction_costs_much_but_not_everything(wrong: float) -> None:
    logloss = binary_metrics(np.array([1 - wrong, wrong]), np.array([wrong, wrong]), np.ones(2))["logloss"]
    assert 10 < logloss < 40


@settings(max_examples=300, deadline=None)
@given(rows.map(scored))
def test_what_is_undefined_is_named_with_the_reason(data: Scored) -> None:
    metrics = data.metrics()
    why = why_missing(metrics, data.label, data.probability, data.weight)
    titles = [title for name, title in LABELS.items() if math.isnan(metrics[name])]
    if not titles:
        assert why is None
        return
    counting = classes(data)
    reason = "no group has rows of both labels"
    if not counting:
        reason = "no row has a weight"
    elif len(counting) == 1:
        reason = f"every row that counts has the label {counting.pop()}"
    assert why == f"no {', '.join(titles)} (-): {reason}"


def test_no_row_and_predictions_that_are_nan_have_no_metric() -> None:
    nothing, label = np.empty(0), np.array([0, 1, 1])
    metrics = binary_metrics(nothing, nothing, nothing, nothing)
    assert set(metrics) == set(LABELS)
    assert all(map(math.isnan, metrics.values()))
    assert str(why_missing(metrics, nothing, nothing, nothing)).endswith(": there is no good row")
    broken = np.array([0.2, math.nan, 0.7])
    metrics = binary_metrics(label, broken, np.ones(3), np.zeros(3))
    assert all(map(math.isnan, metrics.values()))
    assert "1 predictions are NaN" in str(why_missing(metrics, label, broken, np.ones(3)))


@settings(max_examples=200, deadline=None)
@given(rows.map(scored), st.randoms(use_true_random=False))
def test_rows_without_a_group_count_for_all_but_gauc(data: Scored, random: Random) -> None:
    missing = np.array([random.random() < 0.4 for _ in data.label])
    numbers = group_numbers(np.where(missing, 2, data.group), missing)
    assert len(set(numbers[missing])) == missing.sum()
    assert not set(numbers[missing]) & set(numbers[~missing])
    metrics = binary_metrics(data.label, data.probability, data.weight, numbers)
    known = Scored(*(values[~missing] for values in (data.label, data.probability, data.weight, data.group)))
    expected = data.metrics() | {"gauc": known.metrics()["gauc"]}
    assert metrics == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int8(), pa.uint8(), pa.float64()])
def test_labels_and_weights_of_any_type(kind: pa.DataType, tmp_path: Path) -> None:
    write_dataset(tmp_path, {"test": 300}, row_group_size=300, files=1, weight=True)
    (file,) = (tmp_path / "test").iterdir()
    table = pq.read_table(file)
    label = pa.array([i % 3 == 0 for i in range(300)]).cast(kind)
    weight = pa.array([i % 5 != 0 for i in range(300)]).cast(kind)
    for name, values in (("click", label), ("weight", weight)):
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, file)
    probability = np.linspace(0.1, 0.9, 300)
    scores = Scores(Dataset(tmp_path, "test"), {"fused": probability}, np.ones(300, bool))
    kept = np.flatnonzero(np.arange(300) % 5)
    expected = log_loss((kept % 3 == 0).astype(int), probability[kept])
    assert scores.measure().metrics["logloss/fused"] == pytest.approx(expected)
