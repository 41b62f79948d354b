"""Intervals against scipy, by hand, and by simulating what they promise."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cetnet.benchmarks.study.report.bootstrap import against_itself
from cetnet.benchmarks.study.report.intervals import (
    Estimate,
    holm,
    nominal_level,
    student_t,
    two_sided,
)

LOOKS = (3, 5, 7, 9, 11, 12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 99, 101, 5000])
@pytest.mark.parametrize("level", [0.4, 0.05, 0.01, 1e-5])
def test_student_t_is_scipys(freedom: int, level: float) -> None:
    t = float(stats.t.isf(level / 2, freedom))
    assert student_t(freedom, level) == pytest.approx(t, rel=1e-5 if freedom < 100 else 1e-3)
    assert two_sided(np.array([t, 0.0]), freedom) == pytest.approx([level, 1], rel=1e-6)


def test_without_chance_in_the_data_it_is_the_t_test() -> None:
    seeds = np.random.default_rng(0).normal(0.4, 1, 7)
    estimate = Estimate(float(seeds.mean()), seeds)
    expected = stats.ttest_1samp(seeds, 0)
    assert estimate.interval[1:] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert estimate.p == pytest.approx(expected.pvalue, rel=1e-6)


def test_without_spread_between_seeds_it_is_the_datas() -> None:
    estimate = Estimate(-1.0, np.full(4, -1.0), 0.3, 0.5)
    assert estimate.interval == pytest.approx((-1.0, -1.3, -0.5))
    assert estimate.p == pytest.approx(2 * stats.norm.sf(1.96 / 0.5), rel=1e-3)
    assert Estimate(-1.0, np.array([-1.0]), 0.3, 0.5).interval == pytest.approx((-1.0, -1.3, -0.5))
    nothing = Estimate(0.0, np.zeros(3))
    assert (nothing.interval, nothing.p) == ((0, 0, 0), 1)


def errors(rng: np.random.Generator, share: float, seeds: int, trials: int) -> tuple[np.ndarray, float]:
    """Gains of seeds `[trials, seeds]` whose true value is 0, and the deviation of the part that they share; of the
    variance of their mean of ten that part is `share`."""
    shared = rng.normal(size=(trials, 1)) * share**0.5
    return shared + rng.normal(size=(trials, seeds)) * (10 * (1 - share)) ** 0.5, share**0.5


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_intervals_hold_the_truth_95_times_in_100(seeds: int, share: float) -> None:
    drawn, deviation = errors(np.random.default_rng(1), share, seeds, 20_000)
    # How far an interval reaches depends on the seeds by their deviation alone: ask for some, and interpolate.
    asked = np.geomspace(1e-3, 30, 200)
    pattern = np.linspace(-1, 1, seeds) / np.linspace(-1, 1, seeds).std(ddof=1)
    reach = [Estimate(0.0, pattern * s, 1.96 * deviation, 1.96 * deviation).interval.high for s in asked]
    found = np.interp(drawn.std(axis=1, ddof=1), asked, reach)
    assert 0.94 <= np.mean(np.abs(drawn.mean(axis=1)) <= found) <= 0.965


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.97])
def test_repeated_intervals_all_hold_the_truth_95_times_in_100(share: float) -> None:
    drawn, deviation = errors(np.random.default_rng(2), share, LOOKS[-1], 20_000)
    held, held_naive = (np.ones(len(drawn), bool) for _ in range(2))
    asked = np.geomspace(1e-3, 30, 200)
    for seeds in LOOKS:
        seen = drawn[:, :seeds]
        pattern = np.linspace(-1, 1, seeds) / np.linspace(-1, 1, seeds).std(ddof=1)
        for looks, hold in ((LOOKS, held), ((), held_naive)):
            data = 1.96 * deviation
            reach = [Estimate(0.0, pattern * s, data, data, looks).interval.high for s in asked]
            hold &= np.abs(seen.mean(axis=1)) <= np.interp(seen.std(axis=1, ddof=1), asked, reach)
    assert 0.94 <= held.mean() <= 0.96
    if not share:
        assert held_naive.mean() < 0.88  # what looking again and again costs otherwise


def test_a_single_look_has_the_level_itself() -> None:
    assert nominal_level((7,), 0.05) == 0.05
    # Pocock's for normal variables and 5 looks is 0.0158; with many seeds Student's t is normal.
    assert nominal_level((40, 80, 120, 160, 200), 0.05) == pytest.approx(0.0158, abs=0.0006)


def test_a_model_is_told_from_itself_5_times_in_100() -> None:
    losses = np.random.default_rng(3).normal(1, 0.01, (4000, 6))
    told = np.mean([against_itself(of_trial).excludes_zero for of_trial in losses])
    assert 0.04 <= told <= 0.06
    odd, even = losses[0][::2], losses[0][1::2]
    expected = stats.ttest_ind(even, odd).confidence_interval(0.95)
    gain = against_itself(losses[0])
    assert gain.point == pytest.approx(100 * (even.mean() / odd.mean() - 1))
    assert gain[1:] == pytest.approx(tuple(100 * bound / odd.mean() for bound in expected))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(values: list[float]) -> None:
    """A hypothesis is rejected where Bonferroni's test rejects every set of hypotheses that has it."""
    adjusted = holm({str(i): value for i, value in enumerate(values)})
    for index in range(len(values)):
        sets = [
            chosen
            for size in range(1, len(values) + 1)
            for chosen in itertools.combinations(range(len(values)), size)
            if index in chosen
        ]
        worst = max(min(1.0, len(chosen) * min(values[i] for i in chosen)) for chosen in sets)
        assert adjusted[str(index)] == pytest.approx(worst)


def test_holm_leaves_out_what_is_unknown() -> None:
    adjusted = holm({"a": 0.01, "b": math.nan, "c": 0.04})
    assert (adjusted["a"], adjusted["c"]) == (0.02, 0.04)
    assert math.isnan(adjusted["b"])


def test_seeds_that_are_needed_are_enough_and_one_fewer_is_not() -> None:
    seeds = np.random.default_rng(4).normal(0, 0.3, 6)
    estimate = Estimate(float(seeds.mean()), seeds, 0.05, 0.05)
    needed = int(estimate.seeds_until(0.15))

    def half(number: int) -> float:
        pattern = np.linspace(-1, 1, number) / np.linspace(-1, 1, number).std(ddof=1)
        return Estimate(0.0, pattern * seeds.std(ddof=1), 0.05, 0.05).interval.half

    assert half(needed) <= 0.15 < half(needed - 1)
    assert math.isinf(estimate.seeds_until(0.04))
    assert math.isnan(Estimate(1.0, np.ones(1), 0.1, 0.1).seeds_until(0.05))


def test_the_smallest_effect_is_seen_80_times_in_100() -> None:
    rng = np.random.default_rng(5)
    spread = Estimate(0.0, np.array([-1.0, 0, 1]) * np.sqrt(9 / 2), 0.0, 0.0)
    assert spread.deviation == pytest.approx(np.sqrt(4.5))
    wanted = Estimate(0.0, np.linspace(-1, 1, 10) / np.linspace(-1, 1, 10).std(ddof=1)).smallest_seen
    drawn = rng.normal(wanted, 1, (20_000, 10))
    seen = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.02)
    assert Estimate(0.0, np.linspace(-1, 1, 10)).seeds_to_see(0.05) == pytest.approx(
        8 * (np.linspace(-1, 1, 10).std(ddof=1) / 0.05) ** 2, rel=0.03
    )
