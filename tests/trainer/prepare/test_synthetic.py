import json
from dataclasses import replace
from itertools import combinations, pairwise, permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.sources.drawn import draw_chunk
from cetnet.trainer.prepare.sources.synthetic import (
    CROSSES,
    GROUPS,
    HISTORY_LENGTH,
    MODEL,
    RANK,
    RECENCY,
    TERM_SCALES,
    World,
    prepare_synthetic,
)

ROWS = 100_000


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "out"
    prepare_synthetic(out, rows=ROWS, command="test")
    return out


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=1, rows=ROWS, users=2_000, items=500, categories=20).calibrated()


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
def test_worth_of_every_term(seed: int) -> None:
    """As a logistic regression finds it that is given all other terms; crosses and order are worth alike."""
    world = World(seed, rows=60_000, users=2_000, items=500, categories=20).calibrated()
    row = np.arange(60_000)
    terms = world.scaled_terms(world.draw(row))
    truth = world.probability(terms)
    label = world.uniform("click", row) < truth
    best = normalized_entropy(truth, truth)
    assert 0.7 < best < 0.8
    worths = world.worths()
    assert list(worths) == [*TERM_SCALES, *GROUPS]
    for name, worth in worths.items():
        others = [term not in GROUPS.get(name, (name,)) for term in TERM_SCALES]
        without = LogisticRegression().fit(terms[:, others], label)
        loss = normalized_entropy(truth, without.predict_proba(terms[:, others])[:, 1]) - best
        assert worth > 0.01, name
        assert worth == pytest.approx(loss, rel=0.2), name
    crosses, order = (worths[name] for name in GROUPS)
    assert 0.8 < crosses / order < 1.25


def independent_ids(world: World, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(1, size + 1, rows) for name, size in world.sizes.items()}


def test_the_parts_of_crosses_add_up_to_products(world: World) -> None:
    columns = independent_ids(world, 50)
    parts = sum(world.cross_part(order, columns) for order in (1, 2, 3))
    for row in range(50):
        expected = 0.0
        for cross in CROSSES:
            for r in range(RANK):
                product = 1.0
                for name in cross:
                    product *= 1 + world.latent((*cross, str(r)), name, columns[name][[row]])[0]
                expected += product - 1
        assert parts[row] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("order", [2, 3])
def test_crosses_are_no_sums_of_lower_orders(world: World, order: int) -> None:
    """On independent fields, pairs are uncorrelated with anything that one field says, triples with pairs' cells."""
    columns = independent_ids(world, 400_000)
    part = world.cross_part(order, columns)
    part = (part - part.mean()) / part.std()
    of_order = {names for cross in CROSSES for names in combinations(cross, order)}
    for fields in {names for longer in of_order for names in combinations(longer, order - 1)}:
        cell = np.ravel_multi_index(
            [columns[name] for name in fields], [world.sizes[name] + 1 for name in fields]
        )
        counts = np.bincount(cell)
        means = np.bincount(cell, part) / np.maximum(counts, 1)
        by_chance = (counts > 0).sum() / len(part)
        assert (means**2 * counts).sum() / len(part) == pytest.approx(by_chance, abs=2e-3), fields


def test_order_is_of_the_order_alone(world: World) -> None:
    """All orders of a history have the same taste; what each adds, one loop, is 0 on average."""
    read = [3, 3, 11, 17, 5]
    orders = np.array([(*[0] * (HISTORY_LENGTH - 5), *events) for events in permutations(read)])
    taste, order = world.taste_and_order(np.full(len(orders), 7), orders)
    appeal = world.appeal()
    mean = sum(appeal[event, 7] for event in read) / 5
    np.testing.assert_allclose(taste, mean)
    assert order.mean() == pytest.approx(0, abs=1e-9)
    for events, value in zip(permutations(read), order, strict=True):
        expected = sum(RECENCY ** (4 - i) * (appeal[event, 7] - mean) for i, event in enumerate(events))
        assert value == pytest.approx(expected, abs=1e-9)
    assert order.std() > 0.1
    nothing = world.taste_and_order(np.array([7]), np.zeros((1, HISTORY_LENGTH), int))
    assert [part.item() for part in nothing] == [0, 0]


def test_appeal_has_a_direction_and_no_sums(world: World) -> None:
    appeal = world.appeal()[1:, 1:]
    np.testing.assert_allclose(appeal.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(appeal.mean(axis=1), 0, atol=1e-9)
    assert np.abs(appeal - appeal.T).std() > 0.5 * appeal.std()


def test_familiar_and_dense_one_row_at_a_time(world: World) -> None:
    columns = world.draw(np.arange(0, ROWS, 500))
    *_, familiar, dense = world.terms(columns)
    for row in range(len(dense)):
        assert familiar[row] == (columns["category"][row] in columns["history_category"][row].tolist())
        assert dense[row] == -columns["price"][row] - 0.7 * columns["relevance"][row] ** 2


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
    users, days = np.array([3, 9, 3, 1_900]), np.array([1.0, 5.0, 9.0, 13.5])
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


def test_the_card_says_how_clicks_are_made(out: Path, world: World) -> None:
    notes = json.loads((out / "card.json").read_text(encoding="utf-8"))["notes"]
    assert set(MODEL) <= set(notes)
    worths = next(note for note in notes if note.startswith("NE that the best predictor loses without: "))
    for name, worth in world.worths().items():
        assert f" {name} {worth:.3f}" in worths


def test_seeds_differ(world: World) -> None:
    other = replace(world, seed=2)
    assert not draw_chunk(world, 0, 100).equals(draw_chunk(other, 0, 100))


def test_impossible(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot draw 10 rows"):
        prepare_synthetic(tmp_path / "out", rows=10)
    with pytest.raises(UserError, match="500 items in 1 categories"):
        prepare_synthetic(tmp_path / "out", rows=2_000, categories=1)
    with pytest.raises(UserError, match="add up to 1"):
        prepare_synthetic(tmp_path / "out", fractions=(0.5, 0.1, 0.1))
