"""Criteo and its terabyte, against plain Python: on generated files and on the first rows of the real one."""

import csv
import gzip
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.generate.criteo import (
    generate_criteo,
    generate_criteo_1tb,
    generate_criteo_x1,
    generate_criteo_x4,
)
from cetnet.trainer.prepare.sources import published
from cetnet.trainer.prepare.sources.criteo import (
    COUNTS,
    IDS,
    TERABYTE_TABLES,
    prepare_criteo,
    prepare_criteo_1tb,
)
from cetnet.trainer.processes.launcher import CETNET
from tests.paths import SCHEMAS
from tests.trainer.prepare.slow import by_split, check_like, check_prepared
from tests.trainer.prepare.test_folds import folds_of_0_19

ENGINE: dict[str, Any] = {"command": "prepare", "workers": 1}


def study_bucket(text: str) -> str:
    """As in the multi-embedding study's code."""
    if text == "":
        return "NULL"
    v = int(text)
    return str(int(math.log(v) ** 2)) if v > 2 else str(v - 2)


def x4_bucket(text: str) -> str | None:
    """FuxiCTR: missing is filled with 0, and what fills is not in the vocabulary."""
    v = float(text or 0)
    bucket = math.floor(math.log(v) ** 2) if v > 2 else int(v)
    return str(bucket) if bucket else None


def slow_rows(path: Path, label: str, study: bool) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        values = line.split("\t" if path.suffix == ".txt" else ",")
        if values[0] == label:
            continue
        row: dict[str, Any] = {label: values[0]}
        for name, text in zip(COUNTS, values[1:14], strict=True):
            row[name] = study_bucket(text) if study else x4_bucket(text)
        for name, text in zip(IDS, values[14:], strict=True):
            row[name] = text or ("NULL" if study else None)
        rows.append(row)
    return rows


def torch_split(rows: int) -> list[int]:
    train, validation = int(rows * 0.8), int(rows * 0.1)
    parts = torch.utils.data.random_split(
        range(rows),  # type: ignore[arg-type]
        (train, validation, rows - train - validation),
        generator=torch.Generator().manual_seed(0),
    )
    split = [-1] * rows
    for number, part in enumerate(parts):
        for index in part.indices:
            split[index] = number
    return split


@pytest.fixture(scope="module", params=["real", "generated"])
def kaggle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("criteo") / "raw"
    if request.param == "real":
        lines = (request.getfixturevalue("real_data") / "criteo_10k/train.txt").read_text().splitlines(True)
        raw.mkdir()
        (raw / "train.txt").write_text("".join(lines[:3_000]))
    else:
        generate_criteo(raw, 3_000)
    return raw / "train.txt"


def test_multi_embedding(kaggle: Path, tmp_path: Path) -> None:
    schema = prepare_criteo(kaggle.parent, tmp_path / "out", **ENGINE)
    rows = slow_rows(kaggle, "label", study=True)
    check_prepared(tmp_path / "out", by_split(rows, torch_split(len(rows))), 10)
    check_like(schema, SCHEMAS / "criteo.yaml")


def test_all_real_rows_in_several_chunks(real_data: Path, tmp_path: Path) -> None:
    """The least memory cuts the file into three."""
    file = real_data / "criteo_10k/train.txt"
    prepare_criteo(file, tmp_path / "out", "x4_001", memory="535MB", **ENGINE)
    rows = slow_rows(file, "Label", study=False)
    folds = folds_of_0_19([int(row["Label"]) for row in rows], 10, 2018)
    check_prepared(tmp_path / "out", by_split(rows, [{0: 2, 1: 1}.get(fold, 0) for fold in folds]), 10)


@pytest.mark.parametrize(("protocol", "min_count"), [("x4_001", 10), ("x4_002", 2)])
def test_x4_from_the_kaggle_file(kaggle: Path, protocol: Any, min_count: int, tmp_path: Path) -> None:
    schema = prepare_criteo(kaggle, tmp_path / "out", protocol, **ENGINE)
    rows = slow_rows(kaggle, "Label", study=False)
    folds = folds_of_0_19([int(row["Label"]) for row in rows], 10, 2018)
    split = [{0: 2, 1: 1}.get(fold, 0) for fold in folds]
    check_prepared(tmp_path / "out", by_split(rows, split), min_count)
    check_like(schema, SCHEMAS / "criteo_x4.yaml")


def test_in_order_of_time(kaggle: Path, tmp_path: Path) -> None:
    prepare_criteo(kaggle, tmp_path / "out", split="time", **ENGINE)
    rows = slow_rows(kaggle, "label", study=True)
    split = [0 if i < 0.8 * len(rows) else 1 if i < 0.9 * len(rows) else 2 for i in range(len(rows))]
    check_prepared(tmp_path / "out", by_split(rows, split), 10)


def test_x4_in_its_own_files(tmp_path: Path) -> None:
    generate_criteo_x4(tmp_path / "raw", 3_000)
    schema = prepare_criteo(tmp_path / "raw", tmp_path / "out", **ENGINE)
    names = {"train": "train.csv", "validation": "valid.csv", "test": "test.csv"}
    rows = {split: slow_rows(tmp_path / "raw" / name, "Label", study=False) for split, name in names.items()}
    check_prepared(tmp_path / "out", rows, 10)
    check_like(schema, SCHEMAS / "criteo_x4.yaml")
    card = (tmp_path / "out/README.md").read_text()
    assert "rows of train | ours 2,400, published 36,672,493" in card
    assert "this is another file" in card


def test_x1(tmp_path: Path) -> None:
    generate_criteo_x1(tmp_path / "raw", 2_000)
    schema = prepare_criteo(tmp_path / "raw", tmp_path / "out", **ENGINE)
    rows = {}
    for split, name in {"train": "train.csv", "validation": "valid.csv", "test": "test.csv"}.items():
        with (tmp_path / "raw" / name).open(newline="") as file:
            lines = list(csv.DictReader(file))
        rows[split] = [line | {name: float(line[name]) for name in COUNTS} for line in lines]
    check_prepared(tmp_path / "out", rows, 1)
    check_like(schema, SCHEMAS / "criteo_x1.yaml")


@pytest.mark.parametrize("packed", [True, False])
def test_terabyte(packed: bool, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    generate_criteo_1tb(raw, 2_001, days=3)
    day = gzip.decompress((raw / "day_1.gz").read_bytes()).decode().splitlines()
    day[5] = day[5].replace("\t", "\t-7", 1)  # a lower count in this day
    fields = day[6].split("\t")
    fields[14], fields[15], fields[19] = "ffffffff", "80000000", "7"
    day[6] = "\t".join(fields)
    (raw / "day_1.gz").write_bytes(gzip.compress(("\n".join(day) + "\n").encode()))
    days = [gzip.decompress((raw / f"day_{i}.gz").read_bytes()).decode() for i in range(3)]
    if not packed:
        for i, text in enumerate(days):
            (raw / f"day_{i}.gz").unlink()
            (raw / f"day_{i}").write_text(text)
    schema = prepare_criteo_1tb(raw, tmp_path / "out", **ENGINE)
    rows = []
    for text in days:
        lines = [line.split("\t") for line in text.splitlines()]
        counts = [[int(value or 0) for value in line[1:14]] for line in lines]
        lowest = min(min(values) for values in counts)
        for line, values in zip(lines, counts, strict=True):
            row: dict[str, Any] = {"label": line[0]}
            row |= {name: math.log(v - lowest + 2) for name, v in zip(COUNTS, values, strict=True)}
            for name, text_id, size in zip(IDS, line[14:], TERABYTE_TABLES, strict=True):
                number = int(text_id or "0", 16)
                row[name] = (number - 2**32 if number >= 2**31 else number) % size
            rows.append(row)
    first, last = (2_001 * 2) // 3, 2_001
    middle = first + (last - first + 1) // 2
    split = [0 if i < first else 1 if i < middle else 2 for i in range(last)]
    check_raw_ids(tmp_path / "out", by_split(rows, split))
    assert tuple(schema.tables.values()) == TERABYTE_TABLES


def check_raw_ids(out: Path, expected: dict[str, list[dict[str, Any]]]) -> None:
    import pyarrow.parquet as pq

    for split, rows in expected.items():
        table = pq.read_table(out / split).to_pydict()
        assert table["label"] == [float(row["label"]) for row in rows]
        for name in IDS:
            assert table[name] == [row[name] for row in rows], name
        for name in COUNTS:
            assert table[name] == pytest.approx([row[name] for row in rows], abs=1e-5), name


def test_published_counts_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset with the published counts is equal: they are those of the slow reader here."""
    generate_criteo_x4(tmp_path / "raw", 1_000)
    rows = slow_rows(tmp_path / "raw/train.csv", "Label", study=False)
    values = 0
    for name in (*COUNTS, *IDS):
        column = [row[name] for row in rows if row[name] is not None]
        values += sum(column.count(value) >= 10 for value in set(column))
    same = published.Published(
        "somebody", {"train": 800, "validation": 100, "test": 101}, {"C9": 5}, total=values + 2 * 39
    )
    monkeypatch.setitem(prepare_criteo.__globals__["PUBLISHED"], "x4_001", same)
    prepare_criteo(tmp_path / "raw", tmp_path / "out", **ENGINE)
    card = (tmp_path / "out/README.md").read_text()
    assert "| rows of train | equal |" in card
    assert "| rows of test | ours 100, published 101 |" in card
    assert "| values of `C9` | equal |" in card
    assert "| values of all tables | equal |" in card


def line(label: str = "0", count: str = "5", columns: int = 40) -> str:
    return "\t".join([label, *[count] * 13, *["68fd1e64"] * 26][:columns])


def test_mistakes(tmp_path: Path) -> None:
    raw, out = tmp_path / "train.txt", tmp_path / "out"

    def refused(message: str, *lines: str, **options: Any) -> None:
        raw.write_text("\n".join(lines) + "\n" if lines else "")
        with pytest.raises(UserError, match=message) as error:
            prepare_criteo(raw, out, **options, **ENGINE)
        assert "\n" not in str(error.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["train.txt"]

    refused("is empty")
    refused("39 columns and no label", line(columns=39))
    refused("first line has 5 columns between tabs, not 40", "a\tb\tc\td\te")
    refused("label in line 1 is 'label'", line("label"), line())
    refused(
        r"row 3 \(line 3\): expected 40 columns as in `header`, found 39", line(), line(), line(columns=39)
    )
    refused("row 2 .*: expected 40 columns as in `header`, found 41", line(), line() + "\tx")
    refused("row 2 .*: expected 40 columns .*, found 41", line(), line() + "\tx", line(columns=39))
    refused("row 2 .*: expected 40 columns .*, found 39", line(), line(columns=39), line() + "\tx")
    refused("column 'I1', row 2: expected an integer or nothing", line(), line(count="x"))
    refused("column 'label', row 2: expected 0 or 1", line(), line("2"))
    refused("can't be prepared as x1: give the directory of Criteo_x1", line(), protocol="x1")
    refused("the validation split has no rows", *[line()] * 3)


def test_mistaken_directories(tmp_path: Path) -> None:
    x1, x4, avazu = tmp_path / "x1", tmp_path / "x4", tmp_path / "avazu"
    generate_criteo_x1(x1, 100)
    generate_criteo_x4(x4, 100)

    def refused(message: str, raw: Path, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            prepare_criteo(raw, tmp_path / "out", **options, **ENGINE)

    refused("holds neither Criteo's train.txt", tmp_path)
    refused("holds Criteo_x4, which can't be prepared as x1", x4, protocol="x1")
    refused(
        "holds Criteo_x1, which can't be prepared as x4_001: give Criteo's train.txt", x1, protocol="x4_001"
    )
    refused("is split already: for --split time give Criteo's train.txt", x4, split="time")
    shutil.copy(x1 / "test.csv", x4 / "test.csv")
    refused("test.csv is not of Criteo_x4: its header has column 1 named 'label', not 'Label'", x4)
    (x1 / "valid.csv").unlink()
    refused("valid.csv is missing", x1)
    assert not avazu.exists()


def test_mistaken_days(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    generate_criteo_1tb(raw, 30, days=3)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            prepare_criteo_1tb(raw, tmp_path / "out", **ENGINE)
        assert "\n" not in str(error.value)

    whole = (raw / "day_1.gz").read_bytes()
    (raw / "day_1.gz").write_bytes(whole[:-100])
    refused(r"day_1.gz: row \d+ .*: the compressed file is damaged or cut short here")
    (raw / "day_1.gz").write_bytes(gzip.decompress(whole))
    refused("day_1.gz: Not a gzipped file|cannot read .*day_1.gz")
    (raw / "day_1.gz").write_bytes(gzip.compress(line(count="5").replace("68fd1e64", "xyz").encode() + b"\n"))
    refused("column 'C1', row 1: expected hexadecimal numbers of 32 bits")
    (raw / "day_1.gz").unlink()
    refused("holds no day_1.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_command(tmp_path: Path) -> None:
    generate_criteo(tmp_path / "raw", 2_000)
    command = [
        *CETNET,
        "prepare",
        "criteo",
        "--raw",
        str(tmp_path / "raw"),
    ]
    options = ["--protocol", "x4_002", "--memory", "2GB", "--workers", "2"]
    subprocess.run([*command, "--out", str(tmp_path / "out"), *options], check=True)
    assert read_schema(tmp_path / "out/schema.yaml").label == "Label"
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["published"]["rows"]["train"] == 36_672_493
    assert card["command"].endswith("--protocol x4_002")
