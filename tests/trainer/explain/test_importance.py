"""NE lost and its interval, against rows resampled by hand."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from cetnet.trainer.explain.importance import Evaluated, Lost, lost


def ne(label: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
    rate = np.full(len(label), np.average(label, weights=weight))
    loss = log_loss(label, probability, sample_weight=weight)
    return float(loss / log_loss(label, rate, sample_weight=weight))


def test_points_and_intervals_are_those_of_resampled_groups() -> None:
    rng = np.random.default_rng(5)
    rows, groups = 600, 150
    unit = rng.integers(groups, size=rows)
    truth = 1 / (1 + np.exp(-rng.normal(-1, 1, rows) - rng.normal(0, 1, groups)[unit]))
    label, weight = (rng.random(rows) < truth).astype(float), rng.integers(1, 4, rows).astype(float)
    outputs = {"fused": truth, "dcn": truth * 0.9}
    permuted = {
        "fused": rng.permutation(truth),
        "dcn": np.clip(truth + rng.normal(0, 0.01, rows), 0.01, 0.99),
    }
    evaluated = Evaluated(label, weight, unit)
    base = {name: evaluated.loss(each) for name, each in outputs.items()}
    (found,) = lost(base, [{name: evaluated.loss(each) for name, each in permuted.items()}], seed=1)

    for name, each in outputs.items():
        assert evaluated.ne(each) == pytest.approx(ne(label, each, weight))
        expected = 100 * (ne(label, permuted[name], weight) / ne(label, each, weight) - 1)
        assert found[name].percent == pytest.approx(expected)
        # by the formula of cross entropy alone, since a resample's base rate cancels
        losses = [weight * -np.log(np.where(label, p, 1 - p)) for p in (permuted[name], each)]
        members = [np.flatnonzero(unit == group) for group in range(groups)]
        resampled = []
        for _ in range(3000):
            at = np.concatenate([members[group] for group in rng.integers(groups, size=groups)])
            resampled.append(100 * (losses[0][at].sum() / losses[1][at].sum() - 1))
        spread = np.std(resampled)
        np.testing.assert_allclose(
            [found[name].low, found[name].high], np.percentile(resampled, [2.5, 97.5]), atol=0.25 * spread
        )
    assert found["dcn"].holds_zero
    assert not found["fused"].holds_zero


@pytest.mark.parametrize(
    ("effect", "of_groups", "least"), [(0.0, False, 0.85), (1.0, False, 0.85), (1.0, True, 0.75)]
)
def test_intervals_cover_about_what_they_say(effect: float, of_groups: bool, least: float) -> None:
    """Of a feature without effect that a model heeds all the same, of one with, of one that is a group's own."""
    rng = np.random.default_rng(2)

    def lost_in(groups: int) -> Lost:
        unit = np.repeat(np.arange(groups), 5)
        value = rng.normal(size=groups)[unit] if of_groups else rng.normal(size=len(unit))
        other = rng.normal(-1.5, 1, groups)[unit]
        label = (rng.random(len(unit)) < 1 / (1 + np.exp(-other - effect * value))).astype(float)
        rows = Evaluated(label, np.ones(len(unit)), unit)
        losses = [
            {"fused": rows.loss(1 / (1 + np.exp(-other - (effect or 0.3) * each)))}
            for each in (value, rng.permutation(value))
        ]
        return lost(losses[0], losses[1:], seed=0)[0]["fused"]

    truth = lost_in(100_000).percent if effect else 0.0
    trials = [lost_in(300) for _ in range(60)]
    assert np.mean([each.low <= truth <= each.high for each in trials]) >= least


def test_several_permutations_share_their_resamples() -> None:
    rng = np.random.default_rng(6)
    base = {"fused": rng.random(50), "dcn": rng.random(50)}
    one = {"fused": base["fused"] * 1.1, "dcn": base["dcn"] * 1.2}
    found = lost(base, [one, base], seed=2)
    assert found[0]["fused"] == pytest.approx(Lost(10, 10, 10))
    assert found[0]["dcn"] == pytest.approx(Lost(20, 20, 20))
    assert found[1] == {name: pytest.approx(Lost(0, 0, 0)) for name in base}
    assert lost(base, [one], seed=2)[0] == found[0]


def test_undefined() -> None:
    rows = Evaluated(np.array([0.0, 0, 1]), np.ones(3), np.arange(3))
    assert rows.undefined() is None
    assert np.isnan(rows.ne(np.full(3, 0.5), np.array([True, True, False])))
    assert (
        Evaluated(np.zeros(3), np.ones(3), np.arange(3)).undefined()
        == "every row that counts has the label 0"
    )
