"""Two days of clicks: the first is learned from, the second is scored, prepared like the first and raw."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from cetnet.trainer.cli import main
from cetnet.trainer.data.dataset import load_schema
from cetnet.trainer.prepare.generate.clicks import generate_clicks

OUTPUTS = ("fused", "dnn", "din")


def command(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cetnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two days of `clicks`, the first prepared in `data`, and a `run` on it."""
    folder = tmp_path_factory.mktemp("days")
    generate_clicks(folder / "clicks", 16_000, seed=5)
    prepare(
        folder, "day-1.csv", "data", "--split", "time:0.8,0.1,0.1", "--schema", folder / "clicks/clicks.yaml"
    )
    components = {
        "dnn": {"kind": "dnn", "embedding_dim": 4, "hidden_units": [16]},
        "din": {"kind": "din", "embedding_dim": 4, "hidden_units": [16]},
    }
    settings = {
        "run_dir": str(folder / "run"),
        "data": {"path": str(folder / "data"), "batch_size": 64, "lanes": 4},
        "model": {"components": components},
        "training": {"device": "cpu"},
        "evaluation": {"splits": []},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert command("train", folder / "experiment.yaml") == 0
    return folder


def prepare(folder: Path, raw: str, out: str, *options: object) -> None:
    given = ["--raw", folder / "clicks" / raw, "--out", folder / out, "--workers", 1, *options]
    assert command("prepare", raw.rpartition(".")[2], *given) == 0


def scores(folder: Path, data: Path, name: str, *options: object) -> pl.DataFrame:
    assert command("predict", folder / "run", data, "--out", folder / name, *options) == 0
    return pl.read_parquet(folder / name, glob=False)


def encoded_by_hand(folder: Path) -> None:
    """Day two in `by_hand`, encoded in plain polars: the vocabularies counted in day one's train rows."""
    days = [pl.read_csv(folder / f"clicks/day-{number}.csv") for number in (1, 2)]
    train, day = days[0].sort("ts", maintain_order=True).head(round(0.8 * len(days[0]))), days[1]
    split = pl.col("tags", "history").str.split("|").fill_null([])
    train, day = (each.with_columns(split, pl.col("hour").cast(pl.String)) for each in (train, day))
    columns: dict[str, pl.Series] = {}
    for table, readers in {
        "user_id": ["user_id"],
        "item": ["item_id", "history"],
        "device": ["device"],
        "hour": ["hour"],
        "country": ["country"],
        "tags": ["tags"],
    }.items():
        vocabulary = pl.read_parquet(folder / f"run/vocabularies/{table}.parquet", glob=False)
        of_lists = [train[name].list.tail(20) if name == "history" else train[name] for name in readers]
        values = pl.concat([each.explode() if each.dtype == pl.List else each for each in of_lists])
        counts = values.drop_nulls().value_counts().filter(pl.col("count") >= 2)
        assert dict(vocabulary.select("value", "count").iter_rows()) == dict(counts.iter_rows())
        assert vocabulary["id"].to_list() == list(range(1, len(vocabulary) + 1))
        ids = dict(vocabulary.select("value", "id").iter_rows())
        for name in readers:
            column = day[name].list.tail(20) if name == "history" else day[name]
            if column.dtype == pl.List:
                listed = [[ids.get(value, 0) for value in each] for each in column.to_list()]
                columns[name] = pl.Series(listed, dtype=pl.List(pl.Int64))
            else:
                columns[name] = pl.Series([ids.get(value, 0) for value in column.to_list()])
    price = train["price"].drop_nulls()
    columns["price"] = ((day["price"] - price.mean()) / price.std(ddof=0)).fill_null(0).cast(pl.Float32)
    columns["age"] = day["age"].cast(pl.Float64).log1p().fill_null(0).cast(pl.Float32)
    schema = load_schema(folder / "data")
    group = np.unique(day["user_id"].to_numpy(), return_inverse=True)[1]
    frame = pl.DataFrame(columns | {"clicked": day["clicked"], str(schema.group): group, "ts": day["ts"]})
    (folder / "by_hand/test").mkdir(parents=True)
    frame.write_parquet(folder / "by_hand/test/0.parquet")
    (folder / "by_hand/schema.yaml").write_bytes((folder / "data/schema.yaml").read_bytes())


def test_day_two_is_scored_as_if_encoded_by_hand(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoded_by_hand(folder)
    expected = scores(folder, folder / "by_hand", "expected.parquet")
    assert roc_auc_score(expected["label"], expected["fused"]) > 0.55

    prepare(folder, "day-2.csv", "day-2", "--like", folder / "run", "--split", "test")
    like = scores(folder, folder / "day-2", "like.parquet")
    raw = scores(folder, folder / "clicks/day-2.csv", "raw.parquet", "--keep", "user_id,item_id")
    for found in (like, raw):
        for output in OUTPUTS:
            np.testing.assert_allclose(found[output], expected[output], atol=1e-6)
    day = pl.read_csv(folder / "clicks/day-2.csv")
    assert raw.select("user_id", "item_id").equals(day.select("user_id", "item_id"))

    capfd.readouterr()
    assert command("evaluate", folder / "run", folder / "clicks/day-2.csv") == 0
    auc = roc_auc_score(expected["label"], expected["fused"])
    assert f"{auc:.5f}" in capfd.readouterr().out


def test_raw_rows_are_explained_as_prepared_ones(folder: Path) -> None:
    prepare(folder, "day-2.csv", "explained", "--like", folder / "run", "--split", "test")
    found = []
    for data in (folder / "explained", folder / "clicks/day-2.csv"):
        options = ["--features", "device,history", "--rows", 1000, "--out", folder / f"{data.name}-explained"]
        assert command("explain", folder / "run", data, *options) == 0
        content = json.loads((folder / f"{data.name}-explained/explain.json").read_text(encoding="utf-8"))
        found.append([each[key] for each in content["lost_percent"] for key in ("percent", "low", "high")])
        assert content["units"] < content["rows"]
    np.testing.assert_allclose(*found, atol=1e-3)


def test_a_day_prepared_by_itself_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where it has as many values as the run: day one's, with other names of items."""
    text = (folder / "clicks/day-1.csv").read_text(encoding="utf-8")
    renamed = re.sub(r"(?<=[,|])i(\d+)(?=[,|])", r"article \1", text)
    (folder / "clicks/renamed.csv").write_text(renamed, encoding="utf-8")
    for raw in ("day-2.csv", "renamed.csv"):
        alone = folder / f"alone-{raw}"
        given = ["--split", "time:0.8,0.1,0.1", "--schema", folder / "clicks/clicks.yaml"]
        prepare(folder, raw, alone.name, *given)
        capfd.readouterr()
        assert command("evaluate", folder / "run", alone) == 2
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert "--like" in said
        assert "table 'item'" in said or raw == "day-2.csv"
    assert load_schema(alone).tables == load_schema(folder / "data").tables
