import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.schema import Schema
from trainer.errors import UserError
from trainer.prepare.amazon import draw_negatives, prepare_amazon, read_events
from trainer.prepare.dataset import SPLITS

Row = dict[str, Any]
NAME = "Toys_and_Games"


def write_raw(directory: Path, users: dict[int, list[int]], attributes: dict[int, list[int]]) -> Path:
    directory.mkdir(exist_ok=True)
    lines = [" ".join(map(str, [user, *items])) for user, items in users.items()]
    (directory / f"{NAME}.txt").write_text("\n".join(lines) + "\n")
    (directory / f"{NAME}_item2attributes.json").write_text(json.dumps(attributes))
    return directory


def read(out: Path) -> dict[str, list[Row]]:
    return {split: pq.read_table(out / split).to_pylist() for split in SPLITS}


@pytest.fixture(scope="module")
def users() -> dict[int, list[int]]:
    """Every length from 1 to 9; every item is early in some sequence, so that train knows it."""
    rng = random.Random(0)
    sequences = {10 * user: rng.sample(range(100, 140), 1 + user % 9) for user in range(1, 80)}
    return sequences | {1000 + item: [item, 100, 101, 102] for item in range(103, 140)}


@pytest.fixture(scope="module")
def attributes() -> dict[int, list[int]]:
    """A brand, then paths of categories: some attributes occur twice."""
    return {item: [500 + item % 4, 7, 600 + item % 5, 7, 700 + item % 6] for item in range(100, 140)}


@pytest.fixture(scope="module")
def raw(
    users: dict[int, list[int]], attributes: dict[int, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_raw(tmp_path_factory.mktemp("amazon") / "raw", users, attributes)


@pytest.mark.parametrize("split", ["clean", "din"])
@pytest.mark.parametrize("keep", ["recent", "oldest"])
def test_rows_against_a_slow_reader(
    split: Any, keep: Any, raw: Path, users: dict[int, list[int]], tmp_path: Path
) -> None:
    schema = prepare_amazon(raw, NAME, tmp_path / "out", split, max_length=3, keep=keep, attributes=True)
    expected: dict[str, list[tuple[int, int, tuple[int, ...]]]] = {name: [] for name in SPLITS}
    for user, items in users.items():
        for i in range(1, len(items)):
            history = items[:i][-3:] if keep == "recent" else items[:i][:3]
            triple = (user, items[i], tuple(history))
            if i == len(items) - 1:
                expected["test"].append(triple)
                if split == "din":
                    expected["validation"].append(triple)
            elif i == len(items) - 2 and split == "clean":
                expected["validation"].append(triple)
            else:
                expected["train"].append(triple)

    assert schema.tables == {"item_id": 41, "cate_id": 7, "attributes": 1 + 4 + 1 + 5 + 6}
    attribute_values = [7, *range(500, 504), *range(600, 605), *range(700, 706)]
    rows = read(tmp_path / "out")
    for name in SPLITS:
        positives, pairs = [], Counter[tuple[int, tuple[int, ...]]]()
        for row in rows[name]:
            item, before = 99 + row["item_id"], tuple(99 + i for i in row["item_history"])
            assert row["cate_id"] == 1 + item % 6
            assert row["cate_history"] == [1 + i % 6 for i in before]
            values = [attribute_values[a - 1] for a in row["attributes"]]
            assert values == [500 + item % 4, 7, 600 + item % 5, 700 + item % 6]
            if row["label"]:
                positives.append((row["user_id"], item, before))
                pairs[row["user_id"], before] += 1
            else:
                assert item not in users[row["user_id"]]
                pairs[row["user_id"], before] -= 1
        assert not any(pairs.values())  # as many negatives as positives of each user and history
        assert sorted(positives) == sorted(expected[name])
        if name != "train":
            assert positives == expected[name]
            assert [row["label"] for row in rows[name]] == [1, 0] * len(positives)
    labels = [row["label"] for row in rows["train"]]
    assert labels[::2].count(1) not in (0, len(labels) // 2)  # the two of a pair are apart
    if split == "din":
        assert rows["validation"] == rows["test"]


def test_columns_are_those_of_amazon_electronics(raw: Path, tmp_path: Path) -> None:
    schema = prepare_amazon(raw, NAME, tmp_path / "out")
    assert schema == Schema.load(tmp_path / "out/schema.yaml")
    assert schema.group == "user_id"
    assert [(f.name, f.kind, f.table) for f in schema.features] == [
        ("item_id", "categorical", "item_id"),
        ("cate_id", "categorical", "cate_id"),
        ("item_history", "sequence", "item_id"),
        ("cate_history", "sequence", "cate_id"),
    ]
    lengths = [len(row["item_history"]) for row in read(tmp_path / "out")["train"]]
    assert schema.features[2].mean_length == pytest.approx(sum(lengths) / len(lengths), abs=1e-4)


def test_seeds(raw: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        prepare_amazon(raw, NAME, tmp_path / name, seed=seed)
    one, again, two = (read(tmp_path / name) for name in ("one", "again", "two"))
    assert one == again
    assert one["train"] != two["train"]
    negatives = [[row["item_id"] for row in rows["test"] if not row["label"]] for rows in (one, two)]
    assert negatives[0] != negatives[1]


def test_negatives_are_uniform(tmp_path: Path) -> None:
    users = {user: [1, 2, 3, 4, 5] for user in range(1, 1001)} | {5000: [6, 7, 8, 9, 10]}
    events = read_events(write_raw(tmp_path / "raw", users, {}) / f"{NAME}.txt")
    drawn = events.items[draw_negatives(events, np.random.default_rng(0))]
    counts = Counter(drawn[events.user != 5000].tolist())
    assert set(counts) == {6, 7, 8, 9, 10}
    assert all(abs(count - 1000) < 120 for count in counts.values())  # four standard deviations
    assert set(drawn[events.user == 5000]) <= {1, 2, 3, 4, 5}


def test_what_train_does_not_know_is_id_0(tmp_path: Path) -> None:
    """Item 9 is the last one of every user, so it is never a negative; item 1 has no attributes."""
    users = {user: [1, 2, 3, 4 + user % 3, 9] for user in range(1, 10)}
    raw = write_raw(tmp_path / "raw", users, {2: [50], 3: [51], 4: [], 5: [52], 6: [53], 9: [54]})
    schema = prepare_amazon(raw, NAME, tmp_path / "out")
    assert schema.tables == {"item_id": 7, "cate_id": 5}
    test = read(tmp_path / "out")["test"]
    for row in test:
        assert (row["item_id"] == 0) == bool(row["label"])
        assert (row["cate_id"] == 0) == (row["label"] == 1 or row["item_id"] == 4)
        assert row["item_history"][:3] == [1, 2, 3]
        assert row["cate_history"][:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 1 two 3", r"line 3: expected `user item item \.\.\.`, integers; found '7 1 two 3'"),
        ("7 1 2.5", "line 3: expected"),
        ("7", "line 3: expected"),
        ("", "line 3: expected"),
        ("7 99999999999999999999", "line 3: expected"),
        ("1 2 3", "line 3: user 1 was in line 1 already"),
        ("7 1 2 3 4", "user 7 has every one of the 4 items"),
    ],
)
def test_malformed_lines(tmp_path: Path, line: str, message: str) -> None:
    raw = write_raw(tmp_path / "raw", {1: [1, 2, 3], 2: [2, 3, 4]}, {})
    with (raw / f"{NAME}.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        prepare_amazon(raw, NAME, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [raw]


@pytest.mark.parametrize("text", ["{1: [2]}", '{"1": 2}', '{"one": [2]}', '{"1": ["x"]}', "[1]", '{"1": [2'])
def test_malformed_attributes(tmp_path: Path, text: str) -> None:
    raw = write_raw(tmp_path / "raw", {1: [1, 2, 3], 2: [2, 3, 4]}, {})
    (raw / f"{NAME}_item2attributes.json").write_text(text)
    with pytest.raises(UserError, match=r"item2attributes\.json: .*take the original file") as caught:
        prepare_amazon(raw, NAME, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Toys_and_Games\.txt is missing"):
        prepare_amazon(tmp_path, NAME, tmp_path / "out")
    raw = write_raw(tmp_path / "raw", {1: [1, 2, 3]}, {})
    (raw / f"{NAME}_item2attributes.json").unlink()
    with pytest.raises(UserError, match=r"item2attributes\.json is missing"):
        prepare_amazon(raw, NAME, tmp_path / "out")
    (raw / f"{NAME}.txt").write_text("")
    with pytest.raises(UserError, match="is empty"):
        prepare_amazon(raw, NAME, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [raw]


def test_real_files(real_data: Path, tmp_path: Path) -> None:
    schema = prepare_amazon(real_data / "amazon", NAME, tmp_path / "out")
    assert schema.tables == {"item_id": 11_925, "cate_id": 334}
    lines = (real_data / f"amazon/{NAME}.txt").read_text().splitlines()
    counts = [len(line.split()) - 1 for line in lines]
    rows = [pq.read_metadata(tmp_path / "out" / split / "part-00000.parquet").num_rows for split in SPLITS]
    assert rows == [2 * sum(n - 3 for n in counts), 2 * len(lines), 2 * len(lines)]
