"""Hashed ids: the hash against loops and published numbers, and training on raw files against prepared ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Order, Reader
from cetnet.trainer.encoder.hashing import hash_ids, hash_text, mix64
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.splits import parse_split
from cetnet.trainer.prepare.engine.tabular import prepare_table
from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, make_table, write_split
from tests.trainer.prepare.slow import loop_hash

HASHED = ("user", "item", "tag")
PINNED = [16294208416658607535, 6774081908283191102, 12669446482656369175, 2607946979210560863]


def loop_id(value: Any, rows: int) -> int:
    return 0 if value in (None, "") else 1 + loop_hash(str(value)) % (rows - 1)


def test_published_numbers_of_splitmix64() -> None:
    """The first outputs of the generator from seed 1234567, as published with Vigna's splitmix64.c."""
    states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert mix64(states).tolist() == [*expected, 16408922859458223821]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=20))), st.integers(0, 5))
def test_hash_against_a_loop(values: list[str | None], skipped: int) -> None:
    expected = [0 if value is None else loop_hash(value) for value in values]
    for kind in (pa.string(), pa.large_string()):
        texts = pa.array(values, kind)
        assert hash_text(texts).tolist() == expected
        assert hash_text(texts.slice(skipped)).tolist() == expected[skipped:]


def test_hash_is_pinned() -> None:
    assert hash_text(pa.array(["", "a", "68fd1e64", "a longer text, ä"])).tolist() == PINNED


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.text(max_size=9), st.integers(-(2**63), 2**63 - 1).map(str))),
    st.sampled_from([2, 3, 50, 2**31, 10**12]),
)
def test_ids_of_texts(values: list[str | None], rows: int) -> None:
    expected = [loop_id(value, rows) for value in values]
    for array in (pa.array(values, pa.string()), pa.array(values, pa.large_string())):
        assert hash_ids(array, rows).tolist() == expected
        assert hash_ids(array.dictionary_encode(), rows).tolist() == expected
    ids = hash_ids(pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int8()), ["a", None]), rows)
    assert ids.tolist() == [0, 0, loop_id("a", rows)]


def test_an_integer_is_its_decimal_text_in_every_type() -> None:
    rows = 1000
    for kind in (
        pa.int8(),
        pa.int16(),
        pa.int32(),
        pa.int64(),
        pa.uint8(),
        pa.uint16(),
        pa.uint32(),
        pa.uint64(),
    ):
        info = np.iinfo(kind.to_pandas_dtype())
        values = [0, 7, None, info.min, info.max]
        ids = hash_ids(pa.array(values, kind), rows)
        assert ids.tolist() == [loop_id(value, rows) for value in values]
        assert ids.dtype == np.int64


@pytest.mark.parametrize("rows", [2, 11, 1001])
def test_rows_are_used_evenly_and_row_0_not_at_all(rows: int) -> None:
    """Chi-square within four standard deviations of its mean, for ids as they come: in a row, random, text."""
    numbers = np.arange(100_000)
    wild = np.random.default_rng(1).integers(-(2**63), 2**63, 100_000)
    for values in (
        pa.array(numbers),
        pa.array(1024 * numbers),
        pa.array(wild),
        pa.array([f"user_{n}" for n in numbers]),
    ):
        counts = np.bincount(hash_ids(values, rows), minlength=rows)
        assert len(counts) == rows
        assert counts[0] == 0
        mean, freedom = 100_000 / (rows - 1), rows - 2
        assert abs(((counts[1:] - mean) ** 2 / mean).sum() - freedom) <= 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("filled", "share"), [(0.01, 0.01), (0.1, 0.095), (0.5, 0.393), (1, 0.632), (2, 0.865)]
)
def test_as_many_collide_as_the_docs_say(filled: float, share: float) -> None:
    rows = 100_001
    ids = hash_ids(pa.array(np.arange(int(filled * rows))), rows)
    assert np.mean(np.bincount(ids, minlength=rows)[ids] > 1) == pytest.approx(share, abs=0.005)


def raw_and_prepared(directory: Path) -> None:
    """`raw`, of text and integers of any size in files of differing types, and `prepared`, the same by loops."""
    prepared = make_schema(weight=True)
    raw = prepared.model_copy(update={"hashed": HASHED})
    for index, (split, rows) in enumerate({"train": 300, "test": 100}.items()):
        table = make_table(prepared, rows, (1, index))
        files = [table.slice(start, 100) for start in range(0, rows, 100)]
        for number, part in enumerate(files):
            text = number % 2 == 0
            wild = {
                name: column.to_pylist() for name, column in zip(part.column_names, part.columns, strict=True)
            }
            for feature in raw.hashed_features:
                wild[feature.name] = [
                    rename(value, text and feature.name != "user") for value in wild[feature.name]
                ]
            wild["user"][3], wild["tags"][4], wild["history"][5] = (
                None,
                None,
                ["" if text else None, wild["item"][0]],
            )
            kinds = {
                "user": pa.int64() if text else pa.uint64(),
                "item": pa.dictionary(pa.int32(), pa.string()) if text else pa.int64(),
                "tags": pa.list_(pa.string()) if text else pa.large_list(pa.int64()),
                "history": pa.large_list(pa.large_string()) if text else pa.list_(pa.int64()),
            }
            loops = dict(wild)
            for feature in raw.hashed_features:
                size = prepared.tables[str(feature.table)]
                loops[feature.name] = [
                    loop_id(value, size)
                    if feature.kind == "categorical"
                    else [loop_id(each, size) for each in value or []]
                    for value in wild[feature.name]
                ]
            for folder, columns, types in (("raw", wild, kinds), ("prepared", loops, {})):
                schema = pa.schema([(f.name, types.get(f.name, f.type)) for f in part.schema])
                path = directory / folder / split
                path.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.table(columns, schema), path / f"{number}.parquet", row_group_size=30)
    save_yaml(directory / "raw/schema.yaml", raw)
    save_yaml(directory / "prepared/schema.yaml", prepared)


def rename(value: Any, text: bool) -> Any:
    """Ids as they may be in a log: negative, or beyond int32, or text."""
    if isinstance(value, list):
        return [rename(each, text) for each in value]
    return str(value * 10**12) if text else value * 10**12


@pytest.mark.parametrize("order", ["shuffled", "sequential", "partitioned"])
def test_batches_of_raw_files_are_those_of_prepared_ones(tmp_path: Path, order: Order) -> None:
    raw_and_prepared(tmp_path)
    for world_size in (1, 2, 4):
        for rank in range(world_size):
            raw, prepared = (
                Reader(
                    Dataset(tmp_path / folder, "train"), 16, order=order, lanes=4, shuffle_rows=50, rank=rank,
                    world_size=world_size,
                ).batches(0)
                for folder in ("raw", "prepared")
            )  # fmt: skip
            for one, other in zip(raw, prepared, strict=True):
                assert torch.equal(one.row, other.row)
                assert torch.equal(one.sparse.lengths(), other.sparse.lengths())
                assert torch.equal(one.sparse.values(), other.sparse.values())


def test_ids_are_those_of_cetnet_prepare(tmp_path: Path) -> None:
    words = ["", "a", "a longer text, ä", None]
    raw = pa.table(
        {
            "y": pa.array([0, 1] * 20),
            "word": pa.array(words * 10),
            "number": pa.array([-5, 2**40, 7, None] * 10),
            "list": pa.array([["x", "y"], [], None, [None, ""]] * 10, pa.list_(pa.string())),
        }
    )
    pq.write_table(raw, tmp_path / "raw.parquet")
    features = {"word": "categorical", "number": "categorical", "list": "multi_valued"}
    spec = RawSchema(
        label="y", features=tuple(RawFeature(name=n, kind=k, hash=50) for n, k in features.items())
    )
    prepared = prepare_table(
        spec, {"all": [tmp_path / "raw.parquet"]}, "parquet", tmp_path / "out", Card("t", "s", "c"),
        split=parse_split("random:0.4,0.3,0.3", spec, 1),
    )  # fmt: skip
    save_yaml(tmp_path / "schema.yaml", prepared.model_copy(update={"hashed": tuple(features)}))
    (tmp_path / "train").mkdir()
    (tmp_path / "raw.parquet").rename(tmp_path / "train/raw.parquet")

    def rows(path: Path, split: str) -> list[Any]:
        (batch,) = Reader(Dataset(path, split), 40, order="sequential").batches(0)
        ids = [[values.tolist() for values in batch.sparse[name].to_dense()] for name in features]
        return [row for row, number in zip(zip(*ids, strict=True), batch.row, strict=True) if number >= 0]

    hashed = rows(tmp_path, "train")
    assert sorted(hashed) == sorted(
        row for split in ("train", "validation", "test") for row in rows(tmp_path / "out", split)
    )
    assert hashed[3] == ([0], [0], [0, 0])


def test_training_evaluating_and_predicting_from_raw_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    raw_and_prepared(tmp_path)
    model = {"components": {"din": {"kind": "din", "embedding_dim": 4, "hidden_units": [8]}}}
    for folder in ("raw", "prepared"):
        settings = {
            "run_dir": f"run_{folder}",
            "data": {"path": folder, "batch_size": 16, "lanes": 4},
            "model": model,
            "training": {"device": "cpu"},
            "evaluation": {"splits": ["test"]},
        }
        Path("experiment.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        assert run("train", "experiment.yaml")[0] == 0
        assert run("evaluate", f"run_{folder}", folder)[0] == 0
        assert run("predict", f"run_{folder}", folder, "--out", f"{folder}.parquet")[0] == 0
    raw, prepared = pq.read_table("raw.parquet"), pq.read_table("prepared.parquet")
    assert raw.equals(prepared)
    assert raw.equals(pq.read_table("run_raw/predictions/test.parquet"))
    code, stderr = run("evaluate", "run_raw", "prepared")
    assert code == 2
    assert stderr.splitlines()[-1].startswith("cetnet: prepared: table 'item' is not hashed as in the run")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hashed": ["users"]}, "not in tables: users"),
        ({"hashed": ["user"], "tables": {"user": 1}}, "hashed table 'user' needs two rows"),
        ({"hashed": ["user"], "pretrained": {"user": 4}}, "'user' is more than one of"),
        ({"hashed": "user"}, "hashed"),
    ],
)
def test_wrong_schemas(changes: dict[str, Any], problem: str) -> None:
    schema = {"label": "y", "tables": {"user": 5}, "features": [{"name": "user", "kind": "categorical"}]}
    with pytest.raises(ValidationError, match=problem):
        Schema.model_validate(schema | changes)


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("user", [1.5, 2.5], "column 'user' is double, but schema.yaml wants an integer or text"),
        ("user", [["a"], ["b"]], "column 'user' is list<.*>, but schema.yaml wants an integer or text"),
        ("user", [b"a", b"b"], "column 'user' is binary, but schema.yaml wants an integer or text"),
        ("items", ["a", "b"], "column 'items' is string, but schema.yaml wants a list of integers or texts"),
        (
            "items",
            [[1.5], []],
            "column 'items' is list<.*>, but schema.yaml wants a list of integers or texts",
        ),
        ("other", ["a", "b"], "column 'other' is string, but schema.yaml wants an integer: cast it$"),
        ("g", ["a", "b"], "column 'g' is string, but schema.yaml wants an integer: cast it$"),
        ("items", [["a"] * 4, []], "column 'items': a sequence of 4 ids, longer than max_length 3"),
        ("y", [0, None], "row 1 .*, column 'y': null is neither 0 nor 1"),
    ],
)
def test_wrong_columns(tmp_path: Path, column: str, values: list[Any], problem: str) -> None:
    schema = Schema(
        label="y",
        group="g",
        tables={"user": 5, "item": 5, "other": 5},
        hashed=("user", "item"),
        features=(
            Feature(name="user", kind="categorical"),
            Feature(name="items", kind="sequence", table="item", max_length=3),
            Feature(name="other", kind="categorical"),
            Feature(name="g", kind="categorical", table="item"),
        ),
    )
    save_yaml(tmp_path / "schema.yaml", schema)
    columns: dict[str, Any] = {
        "y": [0, 1],
        "user": ["a", "b"],
        "items": [["a"], []],
        "other": [1, 2],
        "g": [-1, 2],
    }
    write_split(tmp_path / "train", pa.table(columns), [[2]])
    assert Reader(Dataset(tmp_path, "train"), 2, lanes=1).steps_per_epoch == 1
    write_split(tmp_path / "train", pa.table(columns | {column: values}), [[2]])
    with pytest.raises(UserError, match=problem):
        list(Reader(Dataset(tmp_path, "train"), 2, lanes=1).batches(0))
