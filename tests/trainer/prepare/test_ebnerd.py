import json
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.sources.ebnerd import DENSE, prepare_ebnerd

Row = dict[str, Any]


@pytest.fixture(scope="module")
def raw(real_data: Path) -> Path:
    return real_data / "ebnerd_demo"


@pytest.fixture(scope="module")
def slow(raw: Path) -> dict[tuple[int, int], Row]:
    """Every (impression, shown article) with its raw values and history, by plain loops."""
    rows = {}
    for week in ("train", "validation"):
        histories = {row["user_id"]: row for row in pq.read_table(raw / week / "history.parquet").to_pylist()}
        for impression in pq.read_table(raw / week / "behaviors.parquet").to_pylist():
            history = histories[impression["user_id"]]
            assert max(history["impression_time_fixed"]) < impression["impression_time"]
            impression["history"] = history["article_id_fixed"][-50:]
            for article in impression["article_ids_inview"]:
                rows[impression["impression_id"], article] = impression
    return rows


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("ebnerd")
    prepare_ebnerd(raw, directory / "random")
    prepare_ebnerd(raw, directory / "time", split="time", dense=True)
    return {split: directory / split for split in ("random", "time")}


def group_order(rows: list[Row]) -> dict[int, list[Row]]:
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["impression_id"]].append(row)
    return groups


@pytest.mark.parametrize("split", ["random", "time"])
def test_rows_against_a_slow_reader(
    split: str, prepared: dict[str, Path], slow: dict[tuple[int, int], Row]
) -> None:
    columns = ["impression_id", "timestamp", "label", "article"]
    data = {name: pq.read_table(prepared[split] / name, columns=columns).to_pylist() for name in SPLITS}
    groups = {name: group_order(rows) for name, rows in data.items()}
    # a partition of the impressions, each whole and in the order shown
    impressions = {key[0]: row for key, row in slow.items()}
    assert sum(len(part) for part in groups.values()) == len(impressions)
    assert set().union(*groups.values()) == set(impressions)
    assert sum(len(rows) for rows in data.values()) == len(slow) == 583_054

    train_articles: set[int] = set()
    for impression_id in groups["train"]:
        train_articles.update(impressions[impression_id]["article_ids_inview"])
        train_articles.update(impressions[impression_id]["history"])
    ids = {article: 1 + i for i, article in enumerate(sorted(train_articles))}
    assert read_schema(prepared[split] / "schema.yaml").tables["article"] == len(ids) + 1
    for part in groups.values():
        for impression_id, rows in part.items():
            raw = impressions[impression_id]
            assert [row["article"] for row in rows] == [ids.get(a, 0) for a in raw["article_ids_inview"]]
            clicked = [float(a in raw["article_ids_clicked"]) for a in raw["article_ids_inview"]]
            assert [row["label"] for row in rows] == clicked

    sample = random.Random(0).sample(range(len(data["test"])), 500)
    table = pq.read_table(prepared[split] / "test")
    users = sorted({impressions[i]["user_id"] for i in groups["train"]})
    for i in sample:
        row = table.slice(i, 1).to_pylist()[0]
        raw = impressions[row["impression_id"]]
        assert row["history"] == [ids.get(a, 0) for a in raw["history"]]
        assert row["user"] == (users.index(raw["user_id"]) + 1 if raw["user_id"] in users else 0)
        assert row["hour"] == raw["impression_time"].hour + 1
        assert (row["gender"] == 0) == (raw["gender"] is None)


def test_time_order(prepared: dict[str, Path]) -> None:
    times = [
        time
        for name in SPLITS
        for time in pq.read_table(prepared["time"] / name, columns=["timestamp"])["timestamp"].to_pylist()
    ]
    assert times == sorted(times)
    card = json.loads((prepared["time"] / "card.json").read_text())["splits"]
    assert card["train"]["last_timestamp"] < card["validation"]["first_timestamp"]
    assert card["validation"]["last_timestamp"] < card["test"]["first_timestamp"]


def test_dense_is_causal(prepared: dict[str, Path], slow: dict[tuple[int, int], Row]) -> None:
    seen: dict[int, list[tuple[Any, bool]]] = defaultdict(list)
    for (_, article), row in slow.items():
        seen[article].append((row["impression_time"], article in row["article_ids_clicked"]))
    table = pq.read_table(prepared["time"] / "test", columns=["impression_id", *DENSE])
    rows = group_order(table.to_pylist())
    for impression_id in random.Random(0).sample(sorted(rows), 40):
        shown = next(row for key, row in slow.items() if key[0] == impression_id)
        for row, article in zip(rows[impression_id], shown["article_ids_inview"], strict=True):
            before = [clicked for time, clicked in seen[article] if time < shown["impression_time"]]
            clicks, exposures = sum(before), len(before)
            expected = [
                math.log1p(clicks),
                math.log1p(exposures),
                math.log((clicks + 1) / (exposures + 10)),
            ]
            assert [row[name] for name in DENSE] == pytest.approx(expected, rel=1e-5)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"behaviors\.parquet is missing"):
        prepare_ebnerd(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
