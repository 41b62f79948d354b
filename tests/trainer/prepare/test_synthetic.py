from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.sources import synthetic
from cetnet.trainer.prepare.sources.drawn import draw_chunk
from cetnet.trainer.prepare.sources.synthetic import TERM_SCALES, World, prepare_synthetic

ROWS = 100_000


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "out"
    prepare_synthetic(out, rows=ROWS, command="test")
    return out


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=1, rows=ROWS, users=3_000, items=1_000, categories=20).calibrated()


def normalized_entropy(label: np.ndarray, p: np.ndarray) -> float:
    rate = label.mean()
    loss = -(label * np.log(p) + (1 - label) * np.log1p(-p)).mean()
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def test_same_bytes_with_two_workers(out: Path, tmp_path: Path) -> None:
    prepare_synthetic(tmp_path / "two", rows=ROWS, workers=2, command="test")
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_rows_do_not_depend_on_the_chunks(world: World) -> None:
    whole = draw_chunk(world, 500, 900)
    assert whole.slice(100, 50).equals(draw_chunk(world, 600, 650))


def test_click_rate_is_the_true_probability(out: Path) -> None:
    table = pq.read_table(out / "train", columns=["label", "true_probability"])
    label, p = table["label"].to_numpy(), table["true_probability"].to_numpy().astype(float)
    assert set(np.unique(label)) == {0.0, 1.0}
    assert 0.17 < label.mean() < 0.23
    for bucket in np.array_split(np.argsort(p), 20):
        deviation = np.sqrt((p[bucket] * (1 - p[bucket])).sum())
        assert abs(label[bucket].sum() - p[bucket].sum()) < 4 * deviation


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_bayes_ne_and_that_every_term_matters(seed: int) -> None:
    world = World(seed, rows=60_000, users=3_000, items=1_000, categories=20).calibrated()
    row = np.arange(60_000)
    terms = world.scaled_terms(world.draw(row))
    label = (world.uniform("click", row) < world.probability(terms)).astype(float)
    best = normalized_entropy(label, world.probability(terms))
    assert 0.75 < best < 0.85
    for i, name in enumerate(TERM_SCALES):
        without = terms.copy()
        without[:, i] = 0
        assert normalized_entropy(label, world.probability(without)) > best + 0.01, name


@pytest.mark.parametrize("order", [2, 3, 4])
def test_crosses_are_no_sums_of_lower_orders(world: World, order: int) -> None:
    """On independent fields a cross is uncorrelated with anything one field alone can say."""
    rng = np.random.default_rng(0)
    for cross in synthetic.CROSSES[f"order_{order}"]:
        assert len(cross) == order
        columns = {name: rng.integers(1, world.sizes[name] + 1, 200_000) for name in cross}
        term = world.cross_term([cross], columns)
        explained = 0.0
        for name in cross:
            sums = np.bincount(columns[name], term - term.mean())
            counts = np.maximum(np.bincount(columns[name]), 1)
            explained += float((sums**2 / counts).sum() / len(term) / term.var())
        assert explained < 0.01, cross


def test_history_is_a_sliding_window(world: World) -> None:
    user = np.full(50, 7)
    day = np.linspace(8, 10, 50)
    histories = [row[row > 0].tolist() for row in world.histories(user, day)]
    for earlier, later in pairwise(histories):
        assert any(
            later[: len(later) - new] == earlier[len(earlier) + new - len(later) :] for new in range(5)
        )
    assert histories[0] != histories[-1]


def test_history_depends_on_user_and_day_alone(world: World) -> None:
    users, days = np.array([3, 9, 3, 2_900]), np.array([1.0, 5.0, 9.0, 13.5])
    together = world.histories(users, days)
    for i in range(4):
        np.testing.assert_array_equal(together[i : i + 1], world.histories(users[i : i + 1], days[i : i + 1]))


def test_items_and_categories_agree(world: World) -> None:
    category = np.repeat(np.arange(1, 21), 200)
    item = world.item_in(category, np.tile(np.arange(200) / 200, 20))
    assert item.min() >= 1
    assert item.max() <= world.items
    np.testing.assert_array_equal(world.category_of(item), category)


def test_sizes_that_do_not_divide(tmp_path: Path) -> None:
    schema = prepare_synthetic(tmp_path / "out", rows=1_500, users=3, items=101, categories=7)
    assert schema.tables["item"] == 102


def test_columns(out: Path) -> None:
    schema = read_schema(out / "schema.yaml")
    rows = {split: pq.read_table(out / split) for split in SPLITS}
    assert [rows[split].num_rows for split in SPLITS] == [80_000, 10_000, 10_000]
    times = [time for split in SPLITS for time in rows[split]["timestamp"].to_pylist()]
    assert times == sorted(times)
    train = rows["train"].slice(0, 2_000).to_pylist()
    for row in train:
        assert len(row["history"]) == len(row["history_category"]) <= 20
        assert row["history_category"] == [1 + (item - 1) % 20 for item in row["history"]]
        assert row["user"] == row["user_id"]
        assert row["hour"] == 1 + row["timestamp"] // 3600 % 24
    lengths = [len(tags) for tags in rows["train"]["tags"].to_pylist()]
    tags = next(feature for feature in schema.features if feature.name == "tags")
    assert tags.mean_length == pytest.approx(sum(lengths) / len(lengths), abs=1e-4)


def test_seeds_differ(world: World) -> None:
    other = replace(world, seed=2)
    assert not draw_chunk(world, 0, 100).equals(draw_chunk(other, 0, 100))


def test_impossible(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot draw 10 rows"):
        prepare_synthetic(tmp_path / "out", rows=10)
    with pytest.raises(UserError, match="add up to 1"):
        prepare_synthetic(tmp_path / "out", fractions=(0.5, 0.1, 0.1))
