"""Rows in memory, permuted: against the Parquet files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.explain.sample import Sample, permuted_together
from tests.data import make_schema, write_dataset


def rows_of(sample: Sample) -> dict[str, list]:
    """Its columns, as Python values."""
    content, schema = sample.content, sample.schema
    columns: dict[str, list] = {schema.label: content.numbers[0].tolist()}
    numbers, ids, lists = iter(content.numbers[2:]), iter(content.ids), iter(content.lists)
    for feature in schema.features:
        if feature.kind == "dense":
            columns[feature.name] = next(numbers).tolist()
        elif feature.kind == "categorical":
            columns[feature.name] = next(ids).tolist()
        else:
            one = next(lists)
            columns[feature.name] = [each.tolist() for each in np.split(one.ids, one.offsets[1:-1])]
    return columns


def files_of(path: Path) -> dict[str, list]:
    tables = [pq.read_table(file) for file in sorted((path / "test").iterdir())]
    return pa.concat_tables(tables).to_pydict()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_dataset(path, {"test": 200}, row_group_size=30)
    return path


def test_a_whole_split(path: Path) -> None:
    sample, files = Sample(Dataset(path, "test"), 200, seed=1), files_of(path)
    assert rows_of(sample) == {name: files[name] for name in rows_of(sample)}
    assert sample.column("session").to_pylist() == files["session"]


def test_rows_drawn_from_a_split(path: Path) -> None:
    files = files_of(path)
    drawn = []
    for seed in range(40):
        sample = Sample(Dataset(path, "test"), 50, seed)
        keys = list(zip(sample.column("session").to_pylist(), rows_of(sample)["price"], strict=True))
        whole = list(zip(files["session"], files["price"], strict=True))
        at = [whole.index(key) for key in keys]
        assert at == sorted(set(at))
        assert rows_of(sample)["history"] == [files["history"][i] for i in at]
        drawn += at
    assert len(set(drawn)) > 195  # of 200, each in one sample of four
    again = Sample(Dataset(path, "test"), 50, 39)
    assert rows_of(again) == rows_of(sample)


def test_features_are_permuted_together_and_others_stay(path: Path) -> None:
    sample = Sample(Dataset(path, "test"), 200, seed=1)
    before, after = rows_of(sample), rows_of(sample.permuted(("user", "history", "age"), seed=3))
    for name in ("click", "item", "tags", "queries", "price"):
        assert after[name] == before[name]
    together = [
        list(zip(rows["user"], rows["history"], rows["age"], strict=True)) for rows in (before, after)
    ]
    assert together[0] != together[1]
    assert sorted(together[0]) == sorted(together[1])
    assert rows_of(sample) == before
    assert rows_of(sample.permuted(("user", "history", "age"), seed=3)) == after
    assert rows_of(sample.permuted(("user", "history", "age"), seed=4)) != after
    alone = rows_of(sample.permuted(("user",), seed=3))
    assert alone["user"] != after["user"]  # features don't share their permutations


def test_which_features_belong_together() -> None:
    events = {"kind": "sequence", "max_length": 3}
    schema = Schema(
        label="click",
        tables={"item": 5, "kind": 4, "word": 9},
        features=(
            Feature(name="item", kind="categorical"),
            Feature(name="clicked", table="item", behavior="clicks", **events),
            Feature(name="clicked_kind", table="kind", behavior="clicks", **events),
            Feature(name="searched", table="word", behavior="searches", **events),
            Feature(name="price", kind="dense"),
        ),
    )
    clicks = ("clicked", "clicked_kind")
    assert permuted_together(schema, []) == [("item",), clicks, ("searched",), ("price",)]
    assert permuted_together(schema, ["clicked_kind"]) == [clicks]
    assert permuted_together(schema, ["price+item", "searched", "searched"]) == [
        ("item", "price"),
        ("searched",),
    ]
    assert permuted_together(schema, ["price+clicked"]) == [(*clicks, "price")]
    with pytest.raises(
        UserError, match="--features prize\\+item: no feature 'prize'; there are item, clicked"
    ):
        permuted_together(schema, ["prize+item"])
    # without behaviors all sequences are one list of events
    assert ("history", "queries") in permuted_together(make_schema(), [])
