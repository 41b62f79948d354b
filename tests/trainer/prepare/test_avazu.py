"""Avazu, against plain Python: on generated files and on the first rows of the real one."""

import csv
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.generate.avazu import generate_avazu, generate_avazu_x1, generate_avazu_x4
from cetnet.trainer.prepare.sources.avazu import COLUMNS, prepare_avazu
from tests.paths import SCHEMAS
from tests.trainer.prepare.slow import by_split, check_like, check_prepared
from tests.trainer.prepare.test_criteo import torch_split
from tests.trainer.prepare.test_folds import folds_of_0_19

ENGINE: dict[str, Any] = {"command": "prepare", "workers": 1}
FILES = {"train": "train.csv", "validation": "valid.csv", "test": "test.csv"}


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def x4_row(row: dict[str, Any]) -> dict[str, Any]:
    day = datetime.strptime("20" + row["hour"][:6], "%Y%m%d")
    weekday = day.strftime("%w")
    return row | {
        "hour": int(row["hour"][6:]),
        "weekday": weekday,
        "weekend": weekday in ("0", "6"),
    }


@pytest.fixture(scope="module", params=["real", "generated"])
def kaggle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "real":
        return Path(request.getfixturevalue("real_data") / "avazu_9k/train.csv")
    raw = tmp_path_factory.mktemp("avazu") / "raw"
    generate_avazu(raw, 2_500)
    return raw / "train.csv"


def test_multi_embedding(kaggle: Path, tmp_path: Path) -> None:
    schema = prepare_avazu(kaggle.parent, tmp_path / "out", **ENGINE)
    rows = [row | {"label": row["click"]} for row in read(kaggle)]
    check_prepared(tmp_path / "out", by_split(rows, torch_split(len(rows))), 4)
    check_like(schema, SCHEMAS / "avazu.yaml")


@pytest.mark.parametrize(("protocol", "min_count"), [("x4_001", 2), ("x4_002", 1)])
def test_x4_from_the_kaggle_file(kaggle: Path, protocol: Any, min_count: int, tmp_path: Path) -> None:
    schema = prepare_avazu(kaggle, tmp_path / "out", protocol, **ENGINE)
    rows = [x4_row(row) for row in read(kaggle)]
    folds = folds_of_0_19([int(row["click"]) for row in rows], 10, 2018)
    check_prepared(tmp_path / "out", by_split(rows, [{0: 2, 1: 1}.get(fold, 0) for fold in folds]), min_count)
    check_like(schema, SCHEMAS / "avazu_x4.yaml")


def test_in_order_of_time(tmp_path: Path) -> None:
    generate_avazu(tmp_path / "raw", 2_400)  # 10 rows an hour
    prepare_avazu(tmp_path / "raw", tmp_path / "out", split="time", **ENGINE)
    rows = [row | {"label": row["click"]} for row in read(tmp_path / "raw/train.csv")]
    first = datetime(2014, 10, 21).timestamp() - datetime(1970, 1, 1).timestamp()
    for row in rows:
        hours = (datetime.strptime("20" + row["hour"], "%Y%m%d%H") - datetime(2014, 10, 21)).total_seconds()
        row["timestamp"] = first + hours
    split = [0 if i < 1_920 else 1 if i < 2_160 else 2 for i in range(len(rows))]
    check_prepared(tmp_path / "out", by_split(rows, split), 4)


def test_x4_in_its_own_files(tmp_path: Path) -> None:
    generate_avazu_x4(tmp_path / "raw", 2_000)
    schema = prepare_avazu(tmp_path / "raw", tmp_path / "out", "x4_002", **ENGINE)
    rows = {split: [x4_row(row) for row in read(tmp_path / "raw" / name)] for split, name in FILES.items()}
    check_prepared(tmp_path / "out", rows, 1)
    check_like(schema, SCHEMAS / "avazu_x4.yaml")


def test_x4_without_its_validation_file(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    generate_avazu_x4(raw, 500)
    (raw / "valid.csv").unlink()
    with pytest.raises(
        UserError, match=r"valid\.csv is missing: give the directory with all files of Avazu_x4"
    ):
        prepare_avazu(raw, out, **ENGINE)
    lines = (raw / "test.csv").read_text().splitlines()
    (raw / "test.csv").write_text("\n".join(",".join(line.split(",")[::2]) for line in lines))  # no click
    prepare_avazu(raw, out, **ENGINE)  # the challenge's directory
    assert not (out / "README.md").read_text().startswith("# Avazu, x4")


def test_x1(tmp_path: Path) -> None:
    generate_avazu_x1(tmp_path / "raw", 2_000)
    schema = prepare_avazu(tmp_path / "raw", tmp_path / "out", **ENGINE)
    check_prepared(
        tmp_path / "out", {split: read(tmp_path / "raw" / name) for split, name in FILES.items()}, 1
    )
    check_like(schema, SCHEMAS / "avazu_x1.yaml")


def test_mistakes(tmp_path: Path) -> None:
    header = ",".join(COLUMNS)
    good = "10000169349117863715,0,14102100" + ",1005" * 21
    raw = tmp_path / "train.csv"

    def refused(message: str, *lines: str, **options: Any) -> None:
        raw.write_text("\n".join(lines) + "\n")
        with pytest.raises(UserError, match=message) as error:
            prepare_avazu(raw, tmp_path / "out", **options, **ENGINE)
        assert "\n" not in str(error.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["train.csv"]

    refused("train.csv: its header has 23 columns|has column 2 named", header.replace("click,", ""), good)
    refused("column 'hour', row 2: expected an hour YYMMDDHH", header, good, good.replace("14102100", "2014"))
    refused("column 'hour', row 1: expected an hour YYMMDDHH", header, good.replace("14102100", ""))
    for hour in (
        "1410210",
        "141021000",
        "1410 210",
        " 4102100",
        "14102100 ",
        "14102124",
        "+4102100",
        "14133100",
    ):
        bad = good.replace("14102100", hour)
        refused(r"train\.csv: column 'hour', row 3: expected an hour YYMMDDHH", header, good, good, bad)
    refused(r"row 2 \(line 3\): expected 24 columns as in the header, found 23", header, good, good[:-5])
    refused("row 1: expected 0 or 1", header, good.replace(",0,", ",x,"))
    refused("can't be prepared as x1: give the directory of Avazu_x1", header, good, protocol="x1")
    refused("is of Avazu_x1: give the directory", "label,feat_1")
    with pytest.raises(UserError, match=r"cannot read .*nothing"):
        prepare_avazu(tmp_path / "nothing", tmp_path / "out", **ENGINE)
    generate_avazu_x1(tmp_path / "x1", 100)
    with pytest.raises(UserError, match="is split already: for --split time give Avazu"):
        prepare_avazu(tmp_path / "x1", tmp_path / "out", split="time", **ENGINE)
