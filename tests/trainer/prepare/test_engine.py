"""The chunked preparation: the same bytes however it is cut, interrupted and distributed."""

import gzip
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import encoded, part_files, splits, vocabulary
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema, hash_ids
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from cetnet.trainer.prepare.engine.splits import TimeSplit, parse_split
from cetnet.trainer.prepare.engine.tabular import prepare_table, prepare_tabular
from cetnet.trainer.prepare.engine.tasks import (
    Resources,
    TaskSizes,
)
from tests.trainer.prepare.conftest import SMALL
from tests.trainer.prepare.slow import loop_hash
from tests.trainer.prepare.test_tabular import check_against_loops, read, records, write_csv, write_schema

CARD = Card(title="t", source="s", command="c")


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def shuffled() -> list[dict[str, Any]]:
    """300 rows, not in time order, with values that have quotes, line ends and commas in CSV."""
    rows = sorted(records(), key=lambda row: row["time"] * 7919 % 300)
    for row in rows:
        if row["item"] == "i4":
            row["item"] = 'four\n"quoted", and more'
    return rows


def write_raw(path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    if kind == "parquet":
        pl.DataFrame(rows).write_parquet(path, row_group_size=70)
    else:
        write_csv(path.with_suffix(""), rows)
        text = path.with_suffix("").read_bytes()
        path.with_suffix("").unlink()
        path.write_bytes(gzip.compress(text, mtime=0) if kind == "csv.gz" else text)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("split", ["random:0.8,0.1,0.1", "time:0.8,0.1,0.1"])
def test_result_does_not_depend_on_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, split: str
) -> None:
    rows = shuffled()
    for number, part in enumerate((rows[:180], rows[180:])):
        (tmp_path / "raw").mkdir(exist_ok=True)
        write_raw(tmp_path / "raw" / f"{number}.{kind}", kind, part)
    schema = write_schema(tmp_path / "raw.yaml")
    format: Any = "parquet" if kind == "parquet" else "csv"

    def prepare(sizes: TaskSizes, name: str) -> dict[str, bytes]:
        monkeypatch.setattr(Resources, "sizes", lambda _: sizes)
        out = tmp_path / name
        prepare_tabular(format, tmp_path / "raw", out, schema, split=split, workers=1, command="c")
        return tree(out)

    whole = prepare(TaskSizes(10**6, 10**9), "whole")
    assert prepare(SMALL, "small") == whole
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []
    if split.startswith("time"):
        in_order = sorted(rows, key=lambda row: row["time"])
        check_against_loops(
            tmp_path / "small",
            {"train": in_order[:240], "validation": in_order[240:270], "test": in_order[270:]},
        )


@pytest.mark.usefixtures("small_sizes")
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 1000]))
def test_equal_times_keep_the_order_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, width: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("ties")
    draw = random.Random(seed)
    # most rows have one of few times, so that some times alone fill several ranges
    times = [draw.choice([-7, draw.randrange(width), draw.randrange(10**9)]) for _ in range(400)]
    text = "y,t,n\n" + "".join(f"{i % 2},{time},{i % 90}\n" for i, time in enumerate(times))
    (tmp_path / "raw.csv").write_text(text)
    spec = RawSchema(
        label="y", timestamp="t", tables={"n": 90}, features=(RawFeature(name="n", kind="categorical"),)
    )
    ordered = sorted(range(400), key=lambda i: times[i])
    first, second = (times[ordered[rank]] for rank in (200, 300))
    split = TimeSplit((0.5, 0.25, 0.25), "t")
    prepare: Any = lambda: prepare_table(  # noqa: E731
        spec, {"all": [tmp_path / "raw.csv"]}, "csv", tmp_path / "out", split=split, card=CARD, workers=1,
    )  # fmt: skip
    if not min(times) < first < second:
        with pytest.raises(UserError, match="too few distinct"):
            prepare()
        return
    prepare()
    found = [row for part in read(tmp_path / "out").values() for row in part]
    assert [(row["t"], row["n"]) for row in found] == [(times[i], i % 90) for i in ordered]
    assert next(len(part) for part in read(tmp_path / "out").values()) == sum(time < first for time in times)


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_value_in_a_late_chunk(tmp_path: Path, workers: int) -> None:
    rows = shuffled()
    for row in (151, 260):
        rows[row]["time"] = "noon"
    write_csv(tmp_path / "raw/a.csv", rows[:100])
    write_csv(tmp_path / "raw/b.csv", rows[100:])
    with pytest.raises(UserError, match=r"b\.csv: column 'time', row 52: expected integer seconds"):
        prepare_tabular(
            "csv", tmp_path / "raw", tmp_path / "out", write_schema(tmp_path / "raw.yaml"), workers=workers
        )
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "raw.yaml"}


@given(st.lists(st.floats(-1e30, 1e30)))
def test_exact_sum(values: list[float]) -> None:
    assert vocabulary._exact_sum(np.array(values, np.float64)) == sum(map(Fraction, values), Fraction(0))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.data())
def test_order_statistic(values: list[int], data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, len(values) - 1))
    halves = np.array_split(np.array(values, np.int64), 2)
    found = splits._order_statistic(lambda: iter(halves), rank, min(values), max(values), bins=4)
    assert found == sorted(values)[rank]


def test_hashed_features(tmp_path: Path) -> None:
    lines = [("0", "68fd1e64", "x|y"), ("1", "", ""), ("1", "fb936136", "y|z|w"), ("0", "7fffffff", "x")] * 30
    (tmp_path / "raw.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    spec = RawSchema(
        label="y",
        header=("y", "c", "h"),
        features=(
            RawFeature(name="c", kind="categorical", hash=1000, hash_function="hex"),
            RawFeature(name="h", kind="sequence", hash=50, max_length=2, keep="oldest"),
        ),
    )
    files = {"all": [tmp_path / "raw.csv"]}
    schema = prepare_table(
        spec, files, "csv", tmp_path / "out", split=parse_split("random:0.4,0.3,0.3", spec, 1), card=CARD,
    )  # fmt: skip
    assert schema.tables == {"c": 1000, "h": 50}
    found = {(row["c"], *row["h"]) for part in read(tmp_path / "out").values() for row in part}
    expected = set()
    for _, c, h in lines:
        number = int(c or "0", 16)
        number -= 2**32 if number >= 2**31 else 0
        expected.add((number % 1000, *(1 + loop_hash(word) % 49 for word in h.split("|")[:2] if word)))
    assert found == expected
    (tmp_path / "raw.csv").write_text("0,12,\n1,xyz,\n" * 20)
    with pytest.raises(UserError, match="column 'c', row 2: expected hexadecimal"):
        prepare_table(
            spec, files, "csv", tmp_path / "bad", split=parse_split("random:0.4,0.3,0.3", spec, 1), card=CARD,
        )  # fmt: skip
    assert hash_ids(pl.Series(["100000000", "-1", ""]), spec.features[0]).tolist() == [-1, -1, -1]


def halve(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("n").cast(pl.Int64) // 2)


def test_transform_and_a_file_in_two_splits(tmp_path: Path) -> None:
    for name, values in (("train", range(20)), ("test", range(10, 30))):
        (tmp_path / name).write_text("y,n\n" + "".join(f"{i % 2},{i}\n" for i in values))
    spec = RawSchema(label="y", features=(RawFeature(name="n", kind="categorical"),))
    files = {"train": [tmp_path / "train"], "validation": [tmp_path / "test"], "test": [tmp_path / "test"]}
    prepare_table(spec, files, "csv", tmp_path / "out", transform=halve, card=CARD)
    known = sorted({str(i // 2) for i in range(20)})
    found = read(tmp_path / "out")
    assert [row["n"] for row in found["train"]] == [1 + known.index(str(i // 2)) for i in range(20)]
    encoding = RawEncoding.load(tmp_path / "out")
    assert encoding is not None
    assert encoding.transform == f"{halve.__module__}.halve"
    late = [1 + known.index(str(i // 2)) if i < 20 else 0 for i in range(10, 30)]
    assert [row["n"] for row in found["validation"]] == [row["n"] for row in found["test"]] == late


@pytest.mark.usefixtures("small_sizes")
def test_row_groups_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_files, "ROW_GROUP_ROWS", 8)
    monkeypatch.setattr(encoded, "ROWS_PER_FILE", 64)
    write_csv(tmp_path / "raw.csv", records())
    schema = write_schema(tmp_path / "raw.yaml")
    prepare_tabular(
        "csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1, split="time:0.8,0.1,0.1"
    )
    files = sorted((tmp_path / "out/train").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [64, 64, 64, 48]
    assert pq.read_metadata(files[0]).num_row_groups == 8
    assert [row["time"] for row in read(tmp_path / "out")["train"]] == list(range(1000, 1240))
