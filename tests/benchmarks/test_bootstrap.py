from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.bootstrap import CHUNK, bootstrap_gain, ne_gain
from trainer.errors import UserError


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
    gain = ne_gain(
        [write(tmp_path / "base.parquet", **columns, fused=base)],
        [write(tmp_path / "new.parquet", **columns, fused=new)],
        resamples=50,
        seed=3,
    )

    label, weight = columns["label"], columns["weight"].astype(np.float64)
    group = columns.get("group", columns["row"])
    members = [np.flatnonzero(group == value) for value in np.unique(group)]
    draws = np.random.default_rng(3).integers(len(members), size=(50, len(members)))

    def slow_gain(rows: np.ndarray) -> float:
        before, after = (normalized_entropy(label[rows], p[rows], weight[rows]) for p in (base, new))
        return 100 * (after - before) / before

    gains = [slow_gain(np.concatenate([members[unit] for unit in drawn])) for drawn in draws]
    assert gain.point == pytest.approx(slow_gain(np.arange(300)), rel=1e-6)
    assert (gain.low, gain.high) == pytest.approx(tuple(np.percentile(gains, [2.5, 97.5])), rel=1e-6)


def test_seeds_are_averaged_before_they_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    columns = evaluation(rng, 500, 50)
    base, new = ([rng.uniform(0.05, 0.7, 500) for _ in range(3)] for _ in range(2))
    paths = {
        name: [
            write(tmp_path / f"{name}{seed}.parquet", **columns, fused=p)
            for seed, p in enumerate(predictions)
        ]
        for name, predictions in (("base", base), ("new", new))
    }
    label, weight = columns["label"], columns["weight"]
    before, after = (
        np.mean([normalized_entropy(label, probability, weight) for probability in predictions])
        for predictions in (base, new)
    )
    gain = ne_gain(paths["base"], paths["new"], resamples=20)
    assert gain.point == pytest.approx(100 * (after - before) / before, rel=1e-6)


def test_identical_predictions_gain_exactly_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    columns = evaluation(rng, 1000, 70)
    path = write(tmp_path / "base.parquet", **columns, fused=rng.uniform(0.1, 0.9, 1000))
    assert ne_gain([path], [path]) == (0.0, 0.0, 0.0)


def test_certain_predictions_have_a_finite_gain(tmp_path: Path) -> None:
    columns = evaluation(np.random.default_rng(4), 100, None)
    base = write(tmp_path / "base.parquet", **columns, fused=np.full(100, 0.3, np.float32))
    certain = write(tmp_path / "new.parquet", **columns, fused=np.ones(100, np.float32))
    assert np.isfinite(ne_gain([base], [certain], resamples=20)).all()


def test_interval_covers_the_true_gain_about_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(400):
        size = rng.integers(1, 9, 150)  # groups of unequal size, correlated within
        base = size * rng.gamma(2, 1, 150)
        new = base * rng.uniform(0.9, 1.06, 150)  # true gain: -2 %
        gain = bootstrap_gain(base, new, resamples=300, seed=trial)
        covered += gain.low <= -2 <= gain.high
    assert 0.90 < covered / 400 < 0.98


def test_the_same_seed_gives_the_same_interval_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    base = rng.gamma(2, 1, 101)
    new = base * rng.uniform(0.8, 1.1, 101)
    whole = bootstrap_gain(base, new)
    assert CHUNK > 2000 * 101
    monkeypatch.setattr("benchmarks.bootstrap.CHUNK", 1000)
    assert bootstrap_gain(base, new) == whole
    assert bootstrap_gain(base, new, seed=1) != whole


def test_random_blocks_give_the_interval_of_the_single_groups() -> None:
    rng = np.random.default_rng(7)
    base = rng.gamma(2, 1, 20_000)
    new = base * rng.uniform(0.8, 1.1, 20_000)
    exact = bootstrap_gain(base, new, resamples=1000)
    blocks = bootstrap_gain(base, new, resamples=1000, max_units=2000)
    assert blocks.point == exact.point
    assert blocks.high - blocks.low == pytest.approx(exact.high - exact.low, rel=0.1)


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
        ne_gain([base], [new])
    assert "new.parquet" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    for name in ("cut.parquet", "absent.parquet"):
        with pytest.raises(UserError, match=name) as raised:
            ne_gain([tmp_path / name], [tmp_path / name])
        assert "\n" not in str(raised.value)


def test_other_column(tmp_path: Path) -> None:
    columns = evaluation(np.random.default_rng(9), 100, None)
    path = write(tmp_path / "base.parquet", **columns, fused=np.full(100, 0.2), dhen=np.full(100, 0.3))
    assert ne_gain([path], [path], column="dhen").point == 0
    with pytest.raises(UserError, match=r"no column 'din'; it has row, label, weight, fused, dhen"):
        ne_gain([path], [path], column="din")
