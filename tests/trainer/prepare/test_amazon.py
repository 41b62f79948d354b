import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cetnet.trainer.cli import app
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.generate.amazon import generate_amazon_reviews
from cetnet.trainer.prepare.sources.amazon import (
    click_rows,
    draw_negatives,
    find_files,
    prepare_amazon,
    read_events,
    read_reviews,
    read_sequences,
)
from tests.paths import SCHEMAS
from tests.trainer.prepare.slow import check_like

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


@pytest.mark.parametrize("split", ["clean", "bars"])
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
                if split == "bars":
                    expected["validation"].append(triple)
            elif i == len(items) - 2 and split == "clean":
                expected["validation"].append(triple)
            else:
                expected["train"].append(triple)

    assert schema.tables == {"item_id": 41, "cate_id": 7, "attributes": 1 + 4 + 1 + 5 + 6}
    attribute_values = [
        *range(500, 504),
        *range(600, 605),
        7,
        *range(700, 706),
    ]  # in the order of their texts
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
    if split == "bars":
        assert rows["validation"] == rows["test"]


def test_columns_are_those_of_amazon_electronics(raw: Path, tmp_path: Path) -> None:
    schema = prepare_amazon(raw, NAME, tmp_path / "out")
    assert schema == read_schema(tmp_path / "out/schema.yaml")
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
    raw = write_raw(tmp_path / "raw", users, {})
    events = read_sequences(raw / f"{NAME}.txt", raw / f"{NAME}_item2attributes.json")
    drawn = events.items.to_numpy()[draw_negatives(events, np.random.default_rng(0))]
    owner = events.users.to_numpy()[events.user]
    counts = Counter(drawn[owner != "5000"].tolist())
    assert set(counts) == {"6", "7", "8", "9", "10"}
    assert all(abs(count - 1000) < 120 for count in counts.values())  # four standard deviations
    assert set(drawn[owner == "5000"]) <= {"1", "2", "3", "4", "5"}


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
    message = r"has no reviews_Toys_and_Games_5\.json with meta_Toys.* and no Toys_and_Games\.txt"
    with pytest.raises(UserError, match=message):
        prepare_amazon(tmp_path, NAME, tmp_path / "out")
    raw = write_raw(tmp_path / "raw", {1: [1, 2, 3]}, {})
    (raw / f"{NAME}_item2attributes.json").unlink()
    with pytest.raises(UserError, match=r"item2attributes\.json is missing"):
        prepare_amazon(raw, NAME, tmp_path / "out")
    (raw / f"{NAME}.txt").write_text("")
    (raw / f"{NAME}_item2attributes.json").write_text("{}")
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


# ------------------------------------------------------------------------------------------------ reviews

CATEGORY = "Musical_Instruments"


def slow_rows(raw: Path, split: str, keep: str) -> dict[str, list[tuple[Any, ...]]]:
    """(user, item, category, time, items, categories) of the positive rows; eval is safe on what we wrote."""
    categories = {}
    for line in (raw / f"meta_{CATEGORY}.json").open():
        meta = eval(line)
        categories[meta["asin"]] = meta["categories"][-1][-1] if "categories" in meta else None
    events: dict[str, list[tuple[int, str]]] = {}
    for line in (raw / f"reviews_{CATEGORY}_5.json").open():
        review = json.loads(line)
        events.setdefault(review["reviewerID"], []).append((review["unixReviewTime"], review["asin"]))
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in SPLITS}
    for user in sorted(events):
        events[user].sort(key=lambda event: event[0])
        items = [item for _, item in events[user]]
        for i in range(1, len(items)):
            before = items[:i][-4:] if keep == "recent" else items[:i][:4]
            known = [categories[item] for item in before]
            row = (user, items[i], categories[items[i]], events[user][i][0], before, known)
            later = len(items) - 1 - i
            if split == "clean":
                rows["test" if later == 0 else "validation" if later == 1 else "train"].append(row)
            else:
                rows["test" if later == 0 else "train"].append(row)
    if split == "bars":
        rows["validation"] = rows["test"]
    return rows


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reviews") / "raw"
    generate_amazon_reviews(out, 2500, seed=3, category=CATEGORY)
    return out


@pytest.mark.parametrize(("split", "keep"), [("clean", "recent"), ("bars", "oldest")])
def test_reviews_against_a_slow_reader(reviews: Path, split: Any, keep: Any, tmp_path: Path) -> None:
    expected = slow_rows(reviews, split, keep)
    days = Counter((user, day) for user, _, _, day, _, _ in expected["train"])
    assert sum(count > 1 for count in days.values()) > 20  # the order of equal times matters
    assert any(category is None for _, _, category, *_ in expected["train"])
    mine: dict[str, set[str]] = {}
    for name in SPLITS:
        for user, item, *_ in expected[name]:
            mine.setdefault(user, set()).add(item)
        for user, *_, before, _ in expected[name]:
            mine[user] |= set(before)

    events = read_events(*find_files(reviews, CATEGORY))
    raw: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for name, frame in click_rows(events, split, 4, keep, np.random.default_rng(1)):
        raw[name] += frame.to_dicts()
    raw["validation"] = raw["validation"] or raw["test"]
    columns = ("user_id", "item_id", "cate_id", "timestamp", "item_history", "cate_history")
    for name in SPLITS:
        positives = [tuple(row[column] for column in columns) for row in raw[name] if row["label"]]
        pairs = Counter((row["user_id"], row["timestamp"], *row["item_history"]) for row in raw[name])
        assert all(count % 2 == 0 for count in pairs.values())
        if name == "train":
            assert sorted(map(repr, positives)) == sorted(map(repr, expected[name]))
        else:
            assert positives == expected[name]
        assert all(row["item_id"] not in mine[row["user_id"]] for row in raw[name] if not row["label"])

    schema = prepare_amazon(reviews, CATEGORY, tmp_path / "out", split, max_length=4, keep=keep)
    assert (schema.group, schema.timestamp) == ("user_id", "timestamp")
    items = sorted({item for row in raw["train"] for item in (row["item_id"], *row["item_history"])})
    leaves = {category for row in raw["train"] for category in (row["cate_id"], *row["cate_history"])}
    item_ids = {item: number for number, item in enumerate(items, start=1)}
    cate_ids = {category: number for number, category in enumerate(sorted(leaves - {None}), start=1)}
    user_ids = {user: number for number, user in enumerate(sorted(mine), start=1)}
    assert schema.tables == {"item_id": len(items) + 1, "cate_id": len(cate_ids) + 1}
    rows = read(tmp_path / "out")
    for name in SPLITS:
        assert rows[name] == [
            {
                "label": row["label"],
                "user_id": user_ids[row["user_id"]],
                "timestamp": row["timestamp"],
                "item_id": item_ids.get(row["item_id"], 0),
                "cate_id": cate_ids.get(row["cate_id"], 0),
                "item_history": [item_ids.get(item, 0) for item in row["item_history"]],
                "cate_history": [cate_ids.get(category, 0) for category in row["cate_history"]],
            }
            for row in raw[name]
        ]


def test_amazon_electronics_has_the_columns_of_its_studies(tmp_path: Path) -> None:
    """Also: gzipped files, the command, and reproducible generators."""
    for name in ("raw", "again"):
        generate_amazon_reviews(tmp_path / name, 400, gz=True)
    names = ["meta_Electronics.json.gz", "reviews_Electronics_5.json.gz"]
    texts = [[gzip.decompress((tmp_path / d / n).read_bytes()) for n in names] for d in ("raw", "again")]
    assert texts[0] == texts[1]
    out = tmp_path / "out"
    command = ["prepare", "amazon_electronics", "--raw", str(tmp_path / "raw"), "--out", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    check_like(read_schema(out / "schema.yaml"), SCHEMAS / "amazon_electronics.yaml")
    assert "| rows of test | ours " in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("reviews_X_5.json", "{'asin': 'B1'}", r"reviews_X_5\.json line 4: expected a JSON review"),
        ("reviews_X_5.json", '{"reviewerID": "A", "asin": "B1"}', "line 4: expected a JSON review"),
        ("reviews_X_5.json", '{"reviewerID": "A", "asin": "B1", "unixReviewTime": "1"}', "line 4: expected"),
        ("reviews_X_5.json", "[" * 100_000, "line 4: expected"),
        ("meta_X.json", "{'asin': 'B1', 'categories': [['a', nan]]}", r"meta_X\.json line 4: expected a Py"),
        ("meta_X.json", "{'asin': 'B1', 'categories': [['a', 1]]}", "line 4: expected a Python dictionary"),
        ("meta_X.json", "{'asin': 'B1', 'categories': 7}", "line 4: expected a Python dictionary"),
        ("meta_X.json", "'asin': 'B1'", "line 4: expected a Python dictionary"),
        ("meta_X.json", "{'asin': 'B1', 'x': " + "[" * 10_000, "line 4: expected a Python dictionary"),
        ("meta_X.json", "[1, 2]", "line 4: expected a Python dictionary"),
        ("meta_X.json", "__import__('pathlib').Path('RAN').touch()", "line 4: expected a Python dictionary"),
        ("meta_X.json", "{'asin': 'B1', 'x': open('RAN', 'w')}", "line 4: expected a Python dictionary"),
    ],
)
def test_bad_lines_are_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "raw"
    raw.mkdir()
    good = [{"reviewerID": "A", "asin": f"B{n}", "unixReviewTime": n, "overall": 5.0} for n in range(3)]
    texts = {
        "reviews_X_5.json": [json.dumps(review) for review in good],
        "meta_X.json": [repr({"asin": f"B{n}", "categories": [["X", f"c{n}"]]}) for n in range(3)],
    }
    texts[file].append(line)
    for name, lines in texts.items():
        (raw / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message) as caught:
        prepare_amazon(raw, "X", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert list(tmp_path.iterdir()) == [raw]


def test_only_a_literal_of_a_wanted_item_is_parsed(tmp_path: Path) -> None:
    """A line of other items may hold anything; it is not read as a literal at all."""
    reviews, meta = tmp_path / "reviews_X_5.json", tmp_path / "meta_X.json"
    lines = [{"reviewerID": user, "asin": f"B{n}", "unixReviewTime": 5} for user in "AC" for n in (2, 1, 3)]
    reviews.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    meta.write_text(
        "{'asin': 'other', 'x': nan}\n"
        "{'related': {'also': ['B9']}, \"asin\": 'B1', 'categories': [['X', \"Men's\"], ['X', 'y']]}\n"
        "{'asin': 'B2', 'description': \"'asin': 'other'\"}\n"
    )
    events = read_reviews(reviews, meta)
    assert events.users.to_list() == ["A", "C"]
    assert events.items.to_list() == ["B1", "B2", "B3"]
    assert events.item.tolist() == [1, 0, 2, 1, 0, 2]  # of one time: as in the file
    assert events.attributes.to_list() == [["X", "Men's", "X", "y"], [], []]


def test_missing_meta(tmp_path: Path) -> None:
    (tmp_path / "reviews_X_5.json.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"meta_X\.json is missing: it belongs to .*reviews_X_5\.json\.gz"):
        prepare_amazon(tmp_path, "X", tmp_path / "out")
    (tmp_path / "meta_X.json").write_text("")
    with pytest.raises(UserError, match=r"cannot read .*reviews_X_5\.json\.gz: Not a gzipped file"):
        prepare_amazon(tmp_path, "X", tmp_path / "out")
