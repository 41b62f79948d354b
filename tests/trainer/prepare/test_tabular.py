import csv
import json
import math
import shutil
import statistics
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from cetnet.trainer.cli import app
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from cetnet.trainer.prepare.generate.amazon import generate_amazon_reviews
from cetnet.trainer.prepare.sources.amazon import prepare_amazon

SCHEMA: dict[str, Any] = {
    "label": "click",
    "group": "user",
    "timestamp": "time",
    "min_count": 2,
    "features": [
        {"name": "user", "kind": "categorical", "min_count": 1},
        {"name": "item", "kind": "categorical"},
        {"name": "history", "kind": "sequence", "table": "item", "max_length": 3},
        {"name": "device", "kind": "categorical"},
        {"name": "price", "kind": "dense", "transform": "log1p"},
        {"name": "age", "kind": "dense", "transform": "standardize"},
    ],
    "tables": {"device": 4},
}


def records(rows: int = 300) -> list[dict[str, Any]]:
    return [
        {
            "click": int(i % 5 == 0),
            "user": f"u{i % 40}",
            "time": 1000 + i,
            "item": f"i{i * i % 37}" if i % 11 else None,
            "history": [f"i{j * i % 41}" for j in range(i % 6)],
            "device": i % 4,
            "price": float(i - 5) if i % 7 else None,
            "age": 20.0 + i % 50,
        }
        for i in range(rows)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"history": "|".join(row["history"])} for row in rows)


def write_schema(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(SCHEMA | changes), encoding="utf-8")
    return path


def read(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: pq.read_table(out / split).to_pylist() for split in SPLITS}


def check_against_loops(out: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
    """The prepared rows are these raw rows, encoded by plain loops."""
    train = splits["train"]
    counts: dict[str, int] = {}
    for row in train:
        for item in [row["item"], *row["history"][-3:]]:
            if item is not None:
                counts[item] = counts.get(item, 0) + 1
    items = sorted(item for item, count in counts.items() if count >= 2)
    users = sorted({row["user"] for row in train})
    everyone = sorted({row["user"] for rows in splits.values() for row in rows})
    assert pq.read_table(out / "vocabularies/item.parquet").to_pylist() == [
        {"value": item, "id": id, "count": counts[item]} for id, item in enumerate(items, 1)
    ]
    ages = [row["age"] for row in train]
    encoding = RawEncoding.load(out)
    assert encoding is not None
    mean, deviation = encoding.moments["age"]
    assert mean == pytest.approx(statistics.fmean(ages))
    assert deviation == pytest.approx(statistics.pstdev(ages))
    assert encoding.raw == RawSchema.model_validate(SCHEMA)
    for split, rows in read(out).items():
        assert len(rows) == len(splits[split])
        for row, raw in zip(rows, splits[split], strict=True):
            assert row["click"] == raw["click"]
            assert row["time"] == raw["time"]
            assert row["user_group"] == 1 + everyone.index(raw["user"])
            assert row["user"] == (1 + users.index(raw["user"]) if raw["user"] in users else 0)
            assert row["item"] == (1 + items.index(raw["item"]) if raw["item"] in items else 0)
            assert row["history"] == [1 + items.index(i) if i in items else 0 for i in raw["history"][-3:]]
            assert row["device"] == raw["device"]
            price = raw["price"]
            price = 0.0 if price is None else math.copysign(math.log1p(abs(price)), price)
            assert row["price"] == pytest.approx(price, rel=1e-5)
            age = (raw["age"] - statistics.fmean(ages)) / statistics.pstdev(ages)
            assert row["age"] == pytest.approx(age, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_time_split_against_loops(tmp_path: Path, format: Any) -> None:
    rows = records()
    path = tmp_path / f"log.{format}"
    shuffled = sorted(rows, key=lambda row: row["time"] * 7919 % 300)
    if format == "csv":
        write_csv(path, shuffled)
    else:
        pl.DataFrame(shuffled).write_parquet(path)
    schema = write_schema(tmp_path / "raw.yaml")
    prepare_tabular(format, path, tmp_path / "out", schema, split="time:0.8,0.1,0.1")
    check_against_loops(
        tmp_path / "out", {"train": rows[:240], "validation": rows[240:270], "test": rows[270:]}
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["README.md", "card.json", "encoding.yaml", "schema.yaml", "vocabularies", *SPLITS]
    )
    notes = json.loads((tmp_path / "out/card.json").read_text())["notes"]
    assert "`price`: 43 missing values became 0 (after the transform)." in notes


@pytest.mark.parametrize("subdirectories", [False, True])
def test_given_splits(tmp_path: Path, subdirectories: bool) -> None:
    rows = records()
    splits = {"train": rows[:200], "validation": rows[200:240], "test": rows[240:]}
    for split, part in splits.items():
        if subdirectories:
            write_csv(tmp_path / "raw" / split / "a.csv", part[:20])
            write_csv(tmp_path / "raw" / split / "b.csv", part[20:])
        else:
            write_csv(tmp_path / "raw" / f"{split}.csv", part)
    prepare_tabular("csv", tmp_path / "raw", tmp_path / "out", write_schema(tmp_path / "raw.yaml"))
    check_against_loops(tmp_path / "out", splits)
    (tmp_path / "raw/test/a.csv" if subdirectories else tmp_path / "raw/test.csv").unlink()


@pytest.mark.parametrize(("second", "said"), [(0, False), (10, True)])
def test_files_with_other_lowest_values_are_told_of(tmp_path: Path, second: int, said: bool) -> None:
    """The same number of a new row becomes another one than it became in one of them."""
    for number, lowest in enumerate((0, second)):
        rows = [{"y": i % 2, "a": "b", "x": float(lowest + i)} for i in range(4)]
        (tmp_path / "raw").mkdir(exist_ok=True)
        pl.DataFrame(rows).write_parquet(tmp_path / f"raw/{number}.parquet")
    dense = {"name": "x", "kind": "dense", "transform": "log_from_lowest"}
    schema = {"label": "y", "features": [{"name": "a", "kind": "categorical"}, dense]}
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(schema), encoding="utf-8")
    out = tmp_path / "out"
    prepare_tabular("parquet", tmp_path / "raw", out, tmp_path / "raw.yaml", "train", workers=1)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert ("shifted by, is from 0 to 10; new rows" in text) == said


def test_random_split_keeps_groups_together(tmp_path: Path) -> None:
    write_csv(tmp_path / "log.csv", records(2_000))
    schema = write_schema(tmp_path / "raw.yaml")
    prepare_tabular("csv", tmp_path / "log.csv", tmp_path / "out", schema)
    groups = [{row["user_group"] for row in rows} for rows in read(tmp_path / "out").values()]
    assert sum(len(group) for group in groups) == len(set().union(*groups)) == 40
    # a user outside train is unknown, but still a group
    assert all(row["user"] == 0 for row in read(tmp_path / "out")["test"])
    prepare_tabular("csv", tmp_path / "log.csv", tmp_path / "other", schema, seed=2)
    assert {row["user_group"] for row in read(tmp_path / "other")["test"]} != groups[2]


def test_datetimes_and_integers(tmp_path: Path) -> None:
    rows = records()
    frame = pl.DataFrame(rows).with_columns(
        pl.from_epoch("time").alias("time"), pl.col("user").str.slice(1).cast(pl.Int64)
    )
    assert isinstance(frame["time"][0], datetime)
    frame.write_parquet(tmp_path / "log.parquet")
    schema = write_schema(tmp_path / "raw.yaml")
    prepare_tabular("parquet", tmp_path / "log.parquet", tmp_path / "out", schema, split="time:0.6,0.2,0.2")
    first = read(tmp_path / "out")["train"][0]
    assert (first["time"], first["user_group"]) == (1000, 0)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (7, "click", 2, "column 'click', row 8: expected 0 or 1"),
        (3, "click", None, "column 'click', row 4"),
        (5, "price", "cheap", "column 'price', row 6: expected a finite number"),
        (5, "price", "inf", "column 'price', row 6"),
        (2, "device", 4, "column 'device', row 3: expected ids from 0 to 3"),
        (2, "time", "noon", "column 'time', row 3: expected integer seconds"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, row: int, column: str, value: object, message: str) -> None:
    rows = records(50)
    rows[row][column] = value
    write_csv(tmp_path / "log.csv", rows)
    with pytest.raises(UserError, match=r"log\.csv") as caught:
        prepare_tabular("csv", tmp_path / "log.csv", tmp_path / "out", write_schema(tmp_path / "raw.yaml"))
    assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "raw.yaml"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labl": "click"}, "labl"),
        ({"label": "clicked"}, "no column 'clicked'"),
        ({"tables": {"nothing": 3}}, "no feature reads: nothing"),
        ({"features": [{"name": "price", "kind": "dense", "min_count": 2}]}, "cannot have a min_count"),
        ({"features": [{"name": "item", "kind": "categorical", "transform": "log1p"}]}, "not dense"),
        ({"features": [{"name": "item", "kind": "sequence"}]}, "max_length"),
        ({"features": [{"name": "item", "kind": "categorical", "colour": 1}], "tables": {}}, "colour"),
    ],
)
def test_bad_schemas(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_csv(tmp_path / "log.csv", records(50))
    schema = write_schema(tmp_path / "raw.yaml", **changes)
    with pytest.raises(UserError, match=message) as caught:
        prepare_tabular("csv", tmp_path / "log.csv", tmp_path / "out", schema)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("split", "message"),
    [("random", "add up to 1"), ("daily:1,2,3", "give random"), ("time:0.5,0.2,0.2", "add up to 1")],
)
def test_bad_splits(tmp_path: Path, split: str, message: str) -> None:
    write_csv(tmp_path / "log.csv", records(50))
    with pytest.raises(UserError, match=message):
        prepare_tabular(
            "csv", tmp_path / "log.csv", tmp_path / "out", write_schema(tmp_path / "raw.yaml"), split=split
        )


def test_incomplete_split(tmp_path: Path) -> None:
    write_csv(tmp_path / "raw" / "train.csv", records(50))
    with pytest.raises(UserError, match="no csv data for validation, test"):
        prepare_tabular("csv", tmp_path / "raw", tmp_path / "out", write_schema(tmp_path / "raw.yaml"))


def test_criteo(real_data: Path, tmp_path: Path) -> None:
    dense, ids = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
    schema = {
        "label": "label",
        "delimiter": "\t",
        "header": ["label", *dense, *ids],
        "min_count": 2,
        "features": [{"name": name, "kind": "dense", "transform": "log1p"} for name in dense]
        + [{"name": name, "kind": "categorical"} for name in ids],
    }
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(schema))
    path = real_data / "criteo_10k/train.txt"
    prepare_tabular("csv", path, tmp_path / "out", tmp_path / "raw.yaml")
    splits = read(tmp_path / "out")
    assert sum(len(rows) for rows in splits.values()) == 10_000
    lines = [line.rstrip("\n").split("\t") for line in path.read_text().splitlines()]
    assert sum(row["label"] for rows in splits.values() for row in rows) == sum(
        cells[0] == "1" for cells in lines
    )
    numbers = [int(cells[2]) for cells in lines if cells[2]]
    raw_sum = sum(math.copysign(math.log1p(abs(number)), number) for number in numbers)
    assert sum(row["I2"] for rows in splits.values() for row in rows) == pytest.approx(raw_sum, rel=1e-4)


def test_avazu(real_data: Path, tmp_path: Path) -> None:
    schema = {
        "label": "click",
        "timestamp": "hour",
        "features": [{"name": name, "kind": "categorical"} for name in ("site_id", "device_model", "C14")],
    }
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(schema))
    path = real_data / "avazu_9k/train.csv"
    with pytest.raises(UserError, match="too few distinct timestamps"):
        prepare_tabular("csv", path, tmp_path / "out", tmp_path / "raw.yaml", split="time:0.8,0.1,0.1")
    prepare_tabular("csv", path, tmp_path / "out", tmp_path / "raw.yaml")
    splits = read(tmp_path / "out")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert sum(len(part) for part in splits.values()) == len(rows)
    assert sum(r["click"] for part in splits.values() for r in part) == sum(int(r["click"]) for r in rows)


@pytest.mark.parametrize("out", [".", "/", "sub/..", ""])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_out_that_is_a_directory_of_others(
    out: str, overwrite: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "log.csv", records(50))
    (tmp_path / "sub").mkdir()
    schema = write_schema(tmp_path / "raw.yaml")
    monkeypatch.chdir(tmp_path)
    arguments = ["prepare", "csv", "--raw", "log.csv", "--schema", str(schema), "--out", out, *overwrite]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, UserError)  # one line and exit code 2, in `main`
    assert ("is not a prepared dataset" if overwrite else "exists already") in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "raw.yaml", "sub"]


def test_disk_that_is_too_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "raw/log.csv", records())
    schema = write_schema(tmp_path / "raw.yaml")
    size = (tmp_path / "raw/log.csv").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(1.5 * size) - 1))
    with pytest.raises(UserError, match=r"MB free, and the preparation may need .* MB: give a directory"):
        prepare_tabular("csv", tmp_path / "raw", tmp_path / "out", schema)
    # the rows of sets with histories, before they are prepared
    generate_amazon_reviews(tmp_path / "amazon", 100)
    with pytest.raises(UserError, match="MB free"):
        prepare_amazon(tmp_path / "amazon", "Electronics", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["amazon", "raw", "raw.yaml"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(1.5 * size)))
    prepare_tabular("csv", tmp_path / "raw", tmp_path / "out", schema)
