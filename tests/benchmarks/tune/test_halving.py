"""Rungs, who goes on, and the expected best of k trials, against slow ways to find them."""

import itertools
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cetnet.benchmarks.tune.halving import expected_best, rungs, survivors, window_ne
from cetnet.trainer.errors import UserError


@given(
    rows=st.integers(1, 10**8),
    sizes=st.lists(st.sampled_from([16, 64, 96, 512, 1000]), min_size=1, max_size=3),
    eta=st.integers(2, 5),
    count=st.integers(1, 4),
)
def test_rungs_are_where_every_trial_writes_a_record(
    rows: int, sizes: list[int], eta: int, count: int
) -> None:
    try:
        every, windows = rungs(rows, sizes, eta, count)
    except UserError:
        assume(False)
    assert all(every % size == 0 for size in sizes)
    assert len(windows) == count - 1
    for rung, (first, last) in enumerate(windows):
        share = rows / eta ** (count - 1 - rung)
        assert share - every < last <= share
        assert 0 <= first < last
        assert first % every == last % every == 0
        assert abs(first - last / eta) < every
    assert windows == sorted(windows)
    if windows and rows >= 10**7:  # the rounding costs a twentieth of the first rung at most
        assert every <= max(windows[0][1] / 19, math.lcm(*sizes))


def test_an_epoch_that_is_too_short_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"the first of 3 rungs is after 111 of 1,000 rows, .* steps of 64 rows; make"
    ):
        rungs(1000, [64, 32], eta=3, count=3)
    assert rungs(1000, [64], eta=3, count=1).windows == []


def test_one_of_eta_goes_on_and_the_best_at_least() -> None:
    values = {4: 0.9, 1: 0.8, 2: math.nan, 3: 0.8, 7: 0.95, 8: 1.0}
    assert survivors(values, 9, 3, 0) == [1, 3, 4]
    assert survivors({1: 0.8, 3: 0.7, 4: 0.75}, 9, 3, 1) == [3]
    assert survivors({5: 2.0}, 9, 3, 4) == [5]
    assert survivors({}, 9, 3, 0) == []


@given(st.integers(0, 2**32 - 1))
def test_the_ne_of_a_window_is_that_of_its_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, weight = rng.integers(0, 2, 40).astype(float), rng.random(40)
    p = rng.uniform(0.05, 0.95, 40)
    loss = -weight * np.where(label == 1, np.log(p), np.log(1 - p))

    def sums(rows: slice) -> dict[str, float]:
        of = {"weight": weight[rows], "positive": (weight * label)[rows], "loss": loss[rows]}
        return {name: float(values.sum()) for name, values in of.items()}

    part = sums(slice(10, 40))
    rate = part["positive"] / part["weight"]
    if rate in (0, 1):
        return
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    ours = window_ne(sums(slice(0, 10)), sums(slice(0, 40)))
    assert ours == pytest.approx(part["loss"] / part["weight"] / entropy)


def test_a_window_of_one_class_has_no_ne() -> None:
    nothing = {"weight": 0.0, "positive": 0.0, "loss": 0.0}
    assert math.isnan(window_ne(nothing, {"weight": 5.0, "positive": 5.0, "loss": 1.0}))
    assert math.isnan(window_ne(nothing, nothing))


@given(st.lists(st.floats(0.1, 2), min_size=1, max_size=5))
def test_the_expected_best_is_the_mean_over_all_draws(values: list[float]) -> None:
    ours = expected_best(values)
    for k, expected in enumerate(ours, 1):
        assert expected == pytest.approx(fmean(map(min, itertools.product(values, repeat=k))))
