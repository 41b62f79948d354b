import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import layout, part_files
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.layout import (
    build_vocabulary,
    encode,
    random_split,
    staging,
    time_cuts,
    time_split,
    write_dataset,
)

CARD = Card(title="Test", source="none", split_rule="by hand", command="test", seed=None)
SCHEMA = Schema(
    label="label",
    tables={"item": 10},
    features=(
        Feature(name="item", kind="categorical"),
        Feature(name="history", kind="sequence", table="item", max_length=3),
        Feature(name="price", kind="dense"),
    ),
)


def frame(rows: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "label": [row % 2 for row in range(rows)],
            "item": [row % 10 for row in range(rows)],
            "history": [[1 + j for j in range(row % 4)] for row in range(rows)],
            "price": [float(row) for row in range(rows)],
        },
        schema_overrides={"history": pl.List(pl.Int64)},
    )


@given(st.lists(st.one_of(st.none(), st.integers(-5, 5))), st.integers(1, 4))
def test_vocabulary_against_counter(values: list[int | None], min_count: int) -> None:
    vocabulary = build_vocabulary(pl.Series("v", values, dtype=pl.Int64), min_count)
    counts = Counter(value for value in values if value is not None)
    assert vocabulary.to_list() == sorted(value for value, count in counts.items() if count >= min_count)


@given(st.lists(st.one_of(st.none(), st.text(max_size=2))), st.lists(st.text(max_size=2), unique=True))
def test_encode_is_zero_exactly_outside_the_vocabulary(values: list[str | None], known: list[str]) -> None:
    vocabulary = pl.Series("known", sorted(known), dtype=pl.String)
    column = pl.DataFrame({"v": pl.Series(values, dtype=pl.String)})
    ids = column.select(encode(pl.col("v"), vocabulary))["v"]
    assert ids.dtype == pl.Int32
    order = sorted(known)
    assert ids.to_list() == [1 + order.index(v) if v in order else 0 for v in values]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(0, 2**31))
def test_random_split_depends_on_key_and_seed_alone(keys: list[int], seed: int) -> None:
    together = random_split(pl.Series(keys, dtype=pl.Int64), seed).to_list()
    alone = [random_split(pl.Series([key], dtype=pl.Int64), seed).item() for key in keys]
    assert together == alone
    assert set(together) <= {0, 1, 2}


def test_random_split_fractions_and_seed() -> None:
    keys = pl.Series(range(100_000))
    shares = np.bincount(random_split(keys, 1).to_numpy()) / len(keys)
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.005)
    assert (random_split(keys, 1) != random_split(keys, 2)).mean() > 0.2
    # pinned: a new version must not move rows between splits
    assert random_split(pl.Series(range(24)), 1).to_list() == PINNED


PINNED = [0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2, 0, 0, 1, 1, 0, 0, 0, 1]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200))
def test_time_split_is_an_ordered_partition(times: list[int]) -> None:
    series = pl.Series("t", times)
    try:
        cuts = time_cuts(series)
    except UserError:
        ordered = sorted(times)
        first, second = ordered[int(len(times) * 0.8)], ordered[int(len(times) * 0.9)]
        assert not ordered[0] < first < second
        return
    index = time_split(series, cuts).to_list()
    groups = [[t for t, i in zip(times, index, strict=True) if i == split] for split in range(3)]
    assert max(groups[0]) < min(groups[1]) <= max(groups[1]) < min(groups[2])
    assert len(groups[0]) <= 0.8 * len(times)


def test_layout_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_files, "ROW_GROUP_ROWS", 8)
    monkeypatch.setattr(layout, "ROWS_PER_FILE", 16)
    whole = frame(50)
    frames = [("train", whole[:13]), ("test", whole[:5]), ("train", whole[13:]), ("validation", whole[:9])]
    with staging(tmp_path / "out", overwrite=False) as directory:
        schema = write_dataset(directory, SCHEMA, frames, CARD)
    out = tmp_path / "out"
    assert read_schema(out / "schema.yaml") == schema
    files = sorted((out / "train").iterdir())
    assert [file.name for file in files] == [f"part-0000{i}.parquet" for i in range(4)]
    assert [pq.read_metadata(file).num_rows for file in files] == [16, 16, 16, 2]
    assert pq.read_metadata(files[0]).row_group(0).num_rows == 8
    assert pq.read_metadata(files[0]).row_group(0).column(0).compression == "ZSTD"
    assert str(pq.read_schema(files[0]).field("history").type) == "list<element: int32>"
    assert str(pq.read_schema(files[0]).field("price").type) == "float"
    read = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert read == whole.to_dicts()
    card = json.loads((out / "card.json").read_text())
    assert card["splits"]["train"] == {"rows": 50, "positives": 25, "positive_rate": 0.5}
    lengths = [len(row["history"]) for row in read]
    assert card["features"]["history"]["mean_length"] == pytest.approx(sum(lengths) / 50, abs=1e-4)
    assert card["features"]["history"]["splits"]["train"]["longest"] == 3
    assert card["features"]["item"]["splits"]["train"]["unknown_ids"] == 0.1
    assert "| train | 50 | 25 | 0.5000 |" in (out / "README.md").read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_remains_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staging(tmp_path / "out", overwrite=False) as directory:
            (directory / "half").write_text("written")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_failed_overwrite_keeps_the_old(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging(out, overwrite=False) as directory:
        (directory / "card.json").write_text("old")
    with pytest.raises(ValueError, match="boom"), staging(out, overwrite=True):
        raise ValueError("boom")
    assert (out / "card.json").read_text() == "old"
    with staging(out, overwrite=True) as directory:
        (directory / "card.json").write_text("new")
    assert (out / "card.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


KILLED = """
import os, signal, sys
from pathlib import Path
from cetnet.trainer.prepare.engine import layout
out, kind, renames = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rename = Path.rename
def rename_or_die(path, target):
    global renames
    if not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    renames -= 1
    return rename(path, target)
Path.rename = rename_or_die
with layout.locked_folder(out, kind) as folder:
    (folder / "new").mkdir()
    (folder / "new/card.json").write_text("half written")
    layout.publish(folder / "new", out)
"""


@pytest.mark.parametrize(("kind", "renames"), [("tmp", 0), ("tmp", 1), ("work", 1)])
def test_what_a_killed_process_left(kind: str, renames: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "card.json").write_text("old")
    command = [sys.executable, "-c", KILLED, str(out), kind, str(renames)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (out.exists(), (tmp_path / f".out.{kind}").exists()) == (renames == 0, True)
    with pytest.raises(UserError, match="exists already"), staging(out, overwrite=False):
        pass
    assert (out / "card.json").read_text() == "old"  # put back
    with staging(out, overwrite=True) as directory:
        assert list(directory.iterdir()) == []
        (directory / "card.json").write_text("new")
    assert (out / "card.json").read_text() == "new"
    assert (tmp_path / ".out.tmp").exists() is False


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        staging(tmp_path / "out", overwrite=False),
        pytest.raises(UserError, match="is being prepared by another process"),
        staging(tmp_path / "out", overwrite=False),
    ):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_existing_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"), staging(tmp_path, overwrite=False):
        pass
    with pytest.raises(UserError, match="not a prepared dataset"), staging(tmp_path, overwrite=True):
        pass
    assert (tmp_path / "precious.txt").exists()


def test_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test split has no rows"):
        write_dataset(tmp_path, SCHEMA, [("train", frame(5)), ("validation", frame(5))], CARD)


@settings(max_examples=10)
@given(st.sampled_from(["item", "history"]), st.sampled_from([-1, 10]))
def test_ids_outside_the_table_are_our_mistake(name: str, bad: int) -> None:
    value = pl.lit(bad) if name == "item" else pl.lit([bad])
    with pytest.raises(AssertionError, match=name):
        layout.check_table(
            frame(3)
            .with_columns(value.alias(name))
            .select(layout.arrow_schema(SCHEMA).names)
            .to_arrow()
            .cast(layout.arrow_schema(SCHEMA)),
            SCHEMA,
        )
