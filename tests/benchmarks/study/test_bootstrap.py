"""Gains and their intervals, against the metrics of resampled rows computed anew."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cetnet.benchmarks.study.report.bootstrap import Baseline, estimates, group_auc, unit_auc
from cetnet.benchmarks.study.report.intervals import Gain
from cetnet.trainer.bootstrap import CHUNK, bootstrap
from cetnet.trainer.errors import UserError
from cetnet.trainer.metrics import auc, grouped_auc


def write(path: Path, **columns: np.ndarray) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def evaluation(rng: np.random.Generator, num_rows: int, num_groups: int | None) -> dict[str, np.ndarray]:
    """Columns that paired runs share, and the truth behind the labels."""
    truth = rng.uniform(0.05, 0.6, num_rows)
    columns = {
        "row": np.arange(num_rows),
        "label": (rng.random(num_rows) < truth).astype(np.float32),
        "weight": rng.uniform(0.5, 2, num_rows).astype(np.float32),
    }
    if num_groups:
        columns["group"] = rng.integers(0, num_groups, num_rows) * 17
    return columns


def normalized_entropy(label: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
    """From the definition: log loss over the log loss of the base rate."""

    def log_loss(p: np.ndarray) -> float:
        return float(np.average(-np.log(np.where(label == 1, p, 1 - p)), weights=weight))

    return log_loss(probability) / log_loss(np.full(len(label), np.average(label, weights=weight)))


@pytest.mark.parametrize("num_groups", [None, 40])
def test_agrees_with_resampling_rows_one_by_one(tmp_path: Path, num_groups: int | None) -> None:
    rng = np.random.default_rng(1)
    columns = evaluation(rng, 300, num_groups)
    base, new = (rng.uniform(0.05, 0.7, 300) for _ in range(2))
    baseline = Baseline({1: write(tmp_path / "base.parquet", **columns, fused=base)})
    gains = baseline.gains({1: write(tmp_path / "new.parquet", **columns, fused=new)}, resamples=50, seed=3)

    label, weight = columns["label"], columns["weight"].astype(np.float64)
    group = columns.get("group", columns["row"])
    members = [np.flatnonzero(group == value) for value in np.unique(group)]
    draws = np.random.default_rng(3).integers(len(members), size=(50, len(members)))

    def check(gain: Gain, slow: Callable[[np.ndarray, np.ndarray], float], tolerance: float = 1e-6) -> None:
        """`slow` computes it from rows and, for each, its group; `tolerance` is a share of the interval."""
        resampled = [
            slow(np.concatenate(drawn), np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn]))
            for drawn in ([members[unit] for unit in units] for units in draws)
        ]
        assert gain.point == pytest.approx(slow(np.arange(300), group), rel=1e-6)
        low, high = np.percentile(resampled, [2.5, 97.5])
        assert gain[1:] == pytest.approx((low, high), abs=tolerance * (high - low))

    def ne_gain(rows: np.ndarray, _: np.ndarray) -> float:
        before, after = (normalized_entropy(label[rows], p[rows], weight[rows]) for p in (base, new))
        return 100 * (after - before) / before

    def auc_gain(rows: np.ndarray, _: np.ndarray) -> float:
        before, after = (auc(label[rows], p[rows], weight[rows]) for p in (base, new))
        return 100 * (after - before)

    def gauc_gain(rows: np.ndarray, groups: np.ndarray) -> float:
        before, after = (grouped_auc(label[rows], p[rows], weight[rows], groups) for p in (base, new))
        return 100 * (after - before)

    check(gains.ne.interval, ne_gain)
    check(gains.auc.interval, auc_gain, 0.1)  # linear in the number of times that a group is drawn
    if num_groups:
        check(gains.gauc.interval, gauc_gain)
    else:
        assert np.isnan(gains.gauc.interval).all()


def test_parts_of_the_units_add_up_to_the_metrics() -> None:
    rng = np.random.default_rng(10)
    label, score = (rng.random(500) < 0.3).astype(float), rng.integers(0, 20, 500) / 20  # many ties
    weight, group = rng.integers(0, 3, 500).astype(float), rng.integers(0, 90, 500)
    unit = np.unique(group, return_inverse=True)[1]
    assert unit_auc(label, score, weight, unit).sum() == pytest.approx(auc(label, score, weight))
    numerator, denominator = group_auc(label, score, weight, unit).sum(axis=1)
    assert numerator / denominator == pytest.approx(grouped_auc(label, score, weight, group))
    with np.errstate(all="raise"):
        assert np.isnan(unit_auc(np.ones(500), score, weight, unit)).all()
        assert not group_auc(np.ones(500), score, weight, unit).any()


def test_seeds_are_averaged_before_they_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    columns = evaluation(rng, 500, 50)
    base, new = ([rng.uniform(0.05, 0.7, 500) for _ in range(3)] for _ in range(2))
    paths = {
        name: {
            seed: write(tmp_path / f"{name}{seed}.parquet", **columns, fused=p)
            for seed, p in enumerate(predictions)
        }
        for name, predictions in (("base", base), ("new", new))
    }
    label, weight = columns["label"], columns["weight"]
    before, after = (
        np.mean([normalized_entropy(label, probability, weight) for probability in predictions])
        for predictions in (base, new)
    )
    gain = Baseline(paths["base"]).gains(paths["new"], resamples=20).ne
    assert gain.point == pytest.approx(100 * (after - before) / before, rel=1e-6)


def test_interval_of_several_seeds_covers_their_spread(tmp_path: Path) -> None:
    """3 seeds whose NE gains differ by far more than the groups do: Student's t with 2 degrees of freedom."""
    rng = np.random.default_rng(11)
    columns = evaluation(rng, 20_000, None)
    base = rng.uniform(0.2, 0.4, 20_000)
    paths = {
        name: {
            seed: write(
                tmp_path / f"{name}{seed}.parquet", **columns, fused=np.clip(base + shift, 0.01, 0.99)
            )
            for seed, shift in enumerate(shifts)
        }
        for name, shifts in (("base", (0, 0, 0)), ("new", (0, 0.1, 0.2)))
    }
    baseline = Baseline(paths["base"])
    gain = baseline.gains(paths["new"]).ne.interval
    single = [
        Baseline({1: paths["base"][seed]}).gains({1: paths["new"][seed]}).ne.interval for seed in range(3)
    ]
    half = 4.303 * np.std([one.point for one in single], ddof=1) / 3**0.5
    assert gain.point == pytest.approx(np.mean([one.point for one in single]))
    assert gain.high - gain.low == pytest.approx(2 * half, rel=0.05)
    assert gain.high - gain.low > 5 * max(one.high - one.low for one in single)
    same = baseline.gains(paths["base"])
    assert same.ne.interval == same.calibrated.interval == same.auc.interval == (0, 0, 0)
    assert same.ne.p == 1
    # Only seeds that both have count, in whatever order.
    fewer = Baseline({seed: paths["base"][seed] for seed in (2, 0)}).gains(paths["new"]).ne
    assert fewer.point == pytest.approx((single[0].point + single[2].point) / 2)
    assert Baseline({7: paths["base"][0]}).gains(paths["new"]) is None


def test_interval_covers_seeds_and_groups_about_95_times_in_100() -> None:
    rng = np.random.default_rng(12)
    covered = 0
    for trial in range(300):
        groups = rng.normal(size=60) * 0.5  # mean 0: the true gain
        seeds = rng.normal(size=3)[:, None] * 0.1
        sums = np.stack([[np.ones(60)] * 2 + [row] * 4 + [np.ones(60)] for row in groups + seeds])
        gain = estimates(sums, resamples=300, seed=trial).auc.interval
        covered += gain.low <= 0 <= gain.high
    assert 0.90 < covered / 300 < 0.99


def test_identical_predictions_gain_exactly_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    columns = evaluation(rng, 1000, 70)
    path = write(tmp_path / "base.parquet", **columns, fused=rng.uniform(0.1, 0.9, 1000))
    assert [gain.interval for gain in Baseline({1: path}).gains({1: path})] == [(0, 0, 0)] * 4


def test_certain_predictions_have_a_finite_gain(tmp_path: Path) -> None:
    columns = evaluation(np.random.default_rng(4), 100, None)
    base = write(tmp_path / "base.parquet", **columns, fused=np.full(100, 0.3, np.float32))
    certain = write(tmp_path / "new.parquet", **columns, fused=np.ones(100, np.float32))
    assert np.isfinite(Baseline({1: base}).gains({1: certain}, resamples=20).ne.interval).all()


def bootstrap_gain(base: np.ndarray, new: np.ndarray, **options: int) -> np.ndarray:
    """Resampled NE gains from cross entropies of units."""
    return bootstrap(np.stack([base, new]), lambda sums: 100 * (sums[1:] / sums[:1] - 1), **options)[0]


def test_interval_covers_the_true_gain_about_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(400):
        size = rng.integers(1, 9, 150)  # groups of unequal size, correlated within
        base = size * rng.gamma(2, 1, 150)
        new = base * rng.uniform(0.9, 1.06, 150)  # true gain: -2 %
        low, high = np.percentile(bootstrap_gain(base, new, resamples=300, seed=trial), [2.5, 97.5])
        covered += low <= -2 <= high
    assert 0.90 < covered / 400 < 0.98


def test_the_same_seed_gives_the_same_interval_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    base = rng.gamma(2, 1, 101)
    new = base * rng.uniform(0.8, 1.1, 101)
    whole = bootstrap_gain(base, new)
    assert CHUNK > 2000 * 101
    monkeypatch.setattr("cetnet.trainer.bootstrap.CHUNK", 1000)
    np.testing.assert_allclose(bootstrap_gain(base, new), whole)
    assert not np.allclose(bootstrap_gain(base, new, seed=1), whole)


def test_random_blocks_give_the_interval_of_the_single_groups() -> None:
    rng = np.random.default_rng(7)
    base = rng.gamma(2, 1, 20_000)
    new = base * rng.uniform(0.8, 1.1, 20_000)
    exact = bootstrap_gain(base, new, resamples=1000)
    blocks = bootstrap_gain(base, new, resamples=1000, max_units=2000)
    assert blocks.mean() == pytest.approx(exact.mean(), abs=0.1 * exact.std())
    assert blocks.std() == pytest.approx(exact.std(), rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": np.arange(1, 101)}, "'row' differs"),
        ({"label": np.ones(100, np.float32)}, "'label' differs"),
        ({"weight": np.full(100, 3, np.float32)}, "'weight' differs"),
        ({"group": np.arange(100)}, "'group' differs"),
        ({"fused": np.full(100, np.nan)}, "has NaN"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    columns = evaluation(np.random.default_rng(8), 100, None) | {"fused": np.full(100, 0.2)}
    base = write(tmp_path / "base.parquet", **columns)
    new = write(tmp_path / "new.parquet", **(columns | change))
    with pytest.raises(UserError, match=message) as raised:
        Baseline({1: base}).gains({1: new})
    assert "new.parquet" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    for name in ("cut.parquet", "absent.parquet"):
        with pytest.raises(UserError, match=name) as raised:
            Baseline({1: tmp_path / name})
        assert "\n" not in str(raised.value)


def test_other_column(tmp_path: Path) -> None:
    columns = evaluation(np.random.default_rng(9), 100, None)
    label, weight = columns["label"], columns["weight"].astype(np.float64)
    path = write(tmp_path / "base.parquet", **columns, fused=np.full(100, 0.2), dhen=np.full(100, 0.3))
    before, after = (normalized_entropy(label, np.full(100, p), weight) for p in (0.2, 0.3))
    change = after / before
    assert Baseline({1: path}).gains({1: path}, "dhen").ne.point == pytest.approx(100 * (change - 1))
    with pytest.raises(UserError, match=r"no column 'din'; it has row, label, weight, fused, dhen"):
        Baseline({1: path}).gains({1: path}, "din")


def test_a_row_without_a_group_is_a_unit_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    columns = evaluation(rng, 300, 40)
    missing = rng.random(300) < 0.3
    apart = np.where(missing, 1_000_000 + np.arange(300), columns["group"])
    unknown = pa.array(columns["group"], mask=missing)
    base, new = (rng.uniform(0.05, 0.7, 300) for _ in range(2))
    gains = []
    for name, group in (("apart", apart), ("unknown", unknown)):
        paths = [
            write(tmp_path / f"{name}-{output}.parquet", **columns | {"group": group}, fused=fused)
            for output, fused in (("base", base), ("new", new))
        ]
        gains.append(Baseline({1: paths[0]}).gains({1: paths[1]}, resamples=50))
    assert [gain.interval for gain in gains[0]] == [gain.interval for gain in gains[1]]
    known = ~missing
    weight = columns["weight"].astype(np.float64)
    gaucs = [grouped_auc(columns["label"][known], p[known], weight[known], apart[known]) for p in (new, base)]
    assert gains[1] is not None
    assert gains[1].gauc.point == pytest.approx(100 * (gaucs[0] - gaucs[1]))


@pytest.mark.parametrize("change", [{"label": np.zeros(300, np.float32)}, {"weight": np.zeros(300)}])
def test_rows_of_a_single_class_or_without_weight_have_no_gains(tmp_path: Path, change: dict) -> None:
    rng = np.random.default_rng(4)
    columns = evaluation(rng, 300, 40) | change
    base, new = (
        write(tmp_path / f"{name}.parquet", **columns, fused=rng.uniform(0.05, 0.7, 300)) for name in "ab"
    )
    gains = Baseline({1: base}).gains({1: new})
    assert gains is not None
    assert all(np.isnan(bound) for gain in gains for bound in gain.interval)
