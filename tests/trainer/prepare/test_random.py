import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.sources.random import prepare_random

SCHEMA: dict[str, Any] = {
    "label": "click",
    "group": "session",
    "timestamp": "time",
    "weight": "importance",
    "true_probability": "p",
    "tables": {"user": 5_000_000, "item": 300, "category": 20, "tag": 1, "image": 70},
    "pretrained": {"image": 4},
    "features": [
        {"name": "user", "kind": "categorical"},
        {"name": "item", "kind": "categorical"},
        {"name": "category", "kind": "categorical"},
        {"name": "item_image", "kind": "categorical", "table": "image"},
        {"name": "tags", "kind": "multi_valued", "table": "tag", "mean_length": 1.5},
        {"name": "items", "kind": "sequence", "table": "item", "max_length": 8, "mean_length": 5},
        {"name": "categories", "kind": "sequence", "table": "category", "max_length": 8, "mean_length": 5},
        {
            "name": "disliked",
            "kind": "sequence",
            "table": "item",
            "max_length": 30,
            "mean_length": 2.5,
            "behavior": "dislikes",
        },
        {"name": "price", "kind": "dense"},
    ],
}
ROWS = 40_000


def write_schema(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(SCHEMA | changes), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("random")
    prepare_random(write_schema(directory / "schema.yaml"), ROWS, directory / "out", command="test")
    return directory / "out"


def read(out: Path, split: str) -> dict[str, Any]:
    columns: dict[str, Any] = pq.read_table(out / split).to_pydict()
    return columns


@pytest.fixture(scope="module")
def train(out: Path) -> dict[str, Any]:
    return read(out, "train")


def test_splits_and_roles(out: Path, train: dict[str, Any]) -> None:
    assert [pq.read_table(out / split).num_rows for split in SPLITS] == [32_000, 4_000, 4_000]
    times = [time for split in SPLITS for time in read(out, split)["time"]]
    assert times == list(range(times[0], times[0] + ROWS))
    assert set(train["click"]) == {0, 1}
    assert 5 < len(train["session"]) / len(set(train["session"])) < 15
    assert min(train["importance"]) >= 0.5
    assert np.mean(train["price"]) == pytest.approx(0, abs=0.03)
    assert np.std(train["price"]) == pytest.approx(1, abs=0.03)


def test_lists(train: dict[str, Any]) -> None:
    lengths = {name: np.array([len(row) for row in train[name]]) for name in ("items", "tags", "disliked")}
    assert [len(row) for row in train["categories"]] == lengths["items"].tolist()
    assert not np.array_equal(lengths["items"], lengths["disliked"])
    for name, mean, longest in (("items", 5, 8), ("tags", 1.5, 4), ("disliked", 2.5, 6)):
        assert lengths[name].mean() == pytest.approx(mean, rel=0.03), name
        assert lengths[name].max() <= longest
        assert 0.04 < (lengths[name] == 0).mean() < 0.4, name


def test_ids_are_long_tailed_over_the_whole_table(train: dict[str, Any]) -> None:
    users = np.array(train["user"])
    assert np.histogram(users, bins=10, range=(0, 5_000_000))[0].min() > 0
    _, counts = np.unique(users, return_counts=True)
    assert len(counts) > 5_000  # many are rare,
    assert counts.max() > 0.02 * len(users)  # some are frequent,
    frequent = np.argsort(np.bincount(train["item"]))[-5:]
    assert np.ptp(frequent) > 100  # and those are not neighbours
    assert set(train["item"]) == set(range(300))
    assert {tag for tags in train["tags"] for tag in tags} == {0}


def test_labels_can_be_learned(out: Path, train: dict[str, Any]) -> None:
    """A plain logistic regression on ids and matches is far better than the base rate, though not perfect."""

    def inputs(columns: dict[str, Any]) -> np.ndarray:
        match = [item in items for item, items in zip(columns["item"], columns["items"], strict=True)]
        image = np.eye(70)[columns["item_image"]]
        return np.column_stack([match, columns["price"], image, np.eye(300)[columns["item"]]])

    test = read(out, "test")
    model = LogisticRegression(max_iter=200).fit(inputs(train), train["click"])
    entropy = log_loss(test["click"], np.full(4_000, np.mean(test["click"])))
    ne = log_loss(test["click"], model.predict_proba(inputs(test))[:, 1]) / entropy
    assert ne < 0.93
    assert model.coef_[0, 0] > 0.2
    bayes = json.loads((out / "card.json").read_text())["splits"]["test"]["bayes_ne"]
    assert bayes == pytest.approx(log_loss(test["click"], test["p"]) / entropy, rel=1e-4)
    assert 0.5 < bayes < ne


def test_pretrained_vectors_tell_the_effect(out: Path, train: dict[str, Any]) -> None:
    vectors = np.load(out / "pretrained/image.npy")
    assert (vectors.shape, vectors.dtype) == ((70, 4), np.float32)
    assert sorted(path.name for path in (out / "pretrained").iterdir()) == ["image.npy"]
    known = vectors[train["item_image"]].astype(np.float64)
    correlations = [np.corrcoef(known[:, i], train["p"])[0, 1] for i in range(4)]
    assert correlations[0] > 0.2
    assert np.abs(correlations[1:]).max() < correlations[0]


def test_same_bytes_for_a_seed(out: Path, tmp_path: Path) -> None:
    schema = out.parent / "schema.yaml"
    prepare_random(schema, ROWS, tmp_path / "again", command="test")
    prepare_random(schema, ROWS, tmp_path / "other", seed=2, command="test")
    for file in ("train/part-00000.parquet", "test/part-00000.parquet", "pretrained/image.npy"):
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
        assert (out / file).read_bytes() != (tmp_path / "other" / file).read_bytes()


def test_capped_tables(tmp_path: Path) -> None:
    schema = prepare_random(write_schema(tmp_path / "s.yaml"), 1_000, tmp_path / "out", max_table_rows=50)
    assert schema.tables == {"user": 50, "item": 50, "category": 20, "tag": 1, "image": 50}
    assert read_schema(tmp_path / "out/schema.yaml") == schema
    assert max(read(tmp_path / "out", "train")["user"]) == 49
    assert np.load(tmp_path / "out/pretrained/image.npy").shape == (50, 4)


def test_smallest(tmp_path: Path) -> None:
    features = [{"name": "only", "kind": "sequence", "table": "tag", "max_length": 1, "mean_length": 9}]
    path = tmp_path / "schema.yaml"
    path.write_text(yaml.safe_dump({"label": "y", "tables": {"tag": 2**33}, "features": features}))
    prepare_random(path, 10, tmp_path / "out")
    assert set(map(len, read(tmp_path / "out", "train")["only"])) <= {0, 1}


def test_group_that_is_a_feature(tmp_path: Path) -> None:
    schema = write_schema(tmp_path / "s.yaml", group="item")
    prepare_random(schema, 500, tmp_path / "out")
    assert max(read(tmp_path / "out", "train")["item"]) < 300


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: not found"):
        prepare_random(tmp_path / "none.yaml", 100, tmp_path / "out")
    with pytest.raises(UserError, match="colour"):
        prepare_random(write_schema(tmp_path / "s.yaml", colour=1), 100, tmp_path / "out")
    (tmp_path / "t.yaml").write_text("{")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        prepare_random(tmp_path / "t.yaml", 100, tmp_path / "out")
    with pytest.raises(UserError, match="at least 10"):
        prepare_random(write_schema(tmp_path / "s.yaml"), 9, tmp_path / "out")
    assert not (tmp_path / "out").exists()
