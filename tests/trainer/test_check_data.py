"""Data that means something else than a run's is refused with the first difference; files are compared by a loop."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.models.schema import Feature, Schema
from cetnet.trainer import check_data
from cetnet.trainer.check_data import check_same_meaning, other_values
from cetnet.trainer.encoder.vocabulary import COLUMNS
from cetnet.trainer.errors import UserError


def write(folder: Path, values: list[str], ids: list[int] | None = None, row_group_size: int = 3) -> None:
    (folder / "vocabularies").mkdir(parents=True, exist_ok=True)
    ids = ids or list(range(1, len(values) + 1))
    table = pa.table([values, ids, np.ones(len(values), np.int64)], schema=COLUMNS)
    pq.write_table(table, folder / "vocabularies/item.parquet", row_group_size=row_group_size)


def schema(rows: int, digest: str | None, encoding: str | None = "e") -> Schema:
    return Schema(
        label="click",
        tables={"item": rows, "hashed": 10},
        vocabularies={"item": digest} if digest else None,
        encoding=encoding,
        features=(
            Feature(name="item", kind="categorical"),
            Feature(name="hashed", kind="categorical"),
            Feature(name="price", kind="dense"),
        ),
    )


def refused(folder: Path, run: Schema, data: Schema) -> str:
    with pytest.raises(UserError) as error:
        check_same_meaning(folder / "run", run, folder / "data", data)
    return str(error.value).replace(str(folder), "")


TEXTS = st.lists(
    st.text(max_size=4), min_size=1, max_size=12, unique_by=lambda text: text.replace("\r\n", "\n")
)


@given(TEXTS, TEXTS, st.integers(0, 12))
@settings(max_examples=50)
def test_the_first_value_that_differs(
    tmp_path_factory: pytest.TempPathFactory, run: list[str], data: list[str], same: int
) -> None:
    data = list(dict.fromkeys([*run[:same], *(text for text in data if text not in run[:same])]))
    folder = tmp_path_factory.mktemp("values")
    write(folder / "run", run)
    write(folder / "data", data, row_group_size=2)
    other = other_values(folder / "run", {"item": "a"}, folder / "data", {"item": "b"})
    assert other is not None
    differs = [
        at
        for at, (one, two) in enumerate(zip(run, data, strict=False))
        if one.replace("\r\n", "\n") != two.replace("\r\n", "\n")
    ]
    assert other.grown == (not differs and len(data) > len(run))
    if differs:
        at = differs[0]
        assert other.what.startswith(
            f"id {at + 1} of table 'item' is {data[at]!r} here and {run[at]!r} in the run"
        )


def test_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_data, "_BATCH_ROWS", 2)
    values = [f"a{i}" for i in range(8)]
    write(tmp_path / "run", values)
    write(tmp_path / "data", [*values[:5], "b9", *values[6:]])
    like = "encode the raw rows as the run's were: `cetnet prepare csv|parquet ... --like /run`"
    said = refused(tmp_path, schema(9, "x"), schema(9, "y"))
    assert said == f"/data: id 6 of table 'item' is 'b9' here and 'a5' in the run; {like}"

    write(tmp_path / "data", values[:5])
    said = refused(tmp_path, schema(9, "x"), schema(6, "y"))
    assert said == f"/data: table 'item' has 5 values here and 8 in the run; {like}"

    write(tmp_path / "data", [*values, "new"])
    said = refused(tmp_path, schema(9, "x"), schema(10, "y"))
    assert (
        "has 9 values here and 8 in the run, the first 8 the same; the model's table is as large as" in said
    )
    assert "train anew on this data, or prepare it with --like /run, without --grow" in said

    write(tmp_path / "data", values, [*range(1, 8), 9])
    said = refused(tmp_path, schema(9, "x"), schema(10, "y"))
    assert "value 'a7' of table 'item' has id 9 here, where id 8 is in the run" in said

    (tmp_path / "data/vocabularies/item.parquet").write_bytes(b"PAR1")
    assert "/data/vocabularies/item.parquet: cannot be read" in refused(
        tmp_path, schema(9, "x"), schema(9, "y")
    )
    (tmp_path / "data/vocabularies/item.parquet").unlink()
    said = refused(tmp_path, schema(9, "x"), schema(9, "y"))
    assert "the ids of table 'item' stand for other values than in the run, as of data prepared anew" in said

    check_same_meaning(tmp_path / "run", schema(9, "x"), tmp_path / "data", schema(9, "x"))
    check_same_meaning(tmp_path / "run", schema(9, None, None), tmp_path / "data", schema(9, None, None))
    said = refused(tmp_path, schema(9, "x"), schema(9, None))
    assert "schema.yaml of the data doesn't say which values the ids of table 'item' stand for" in said
    said = refused(tmp_path, schema(9, "x"), schema(9, "x", None))
    assert "schema.yaml of the data doesn't say how numbers were made of raw values" in said
    assert "table 'item' has 10 rows here and 9 in the run" in refused(
        tmp_path, schema(9, None, None), schema(10, None, None)
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"moments": {"price": [3.1, 1]}}, "'price' is standardized with mean 3.1 here and 2.9 in the run"),
        (
            {"moments": {"price": [2.9, 2]}},
            "'price' is standardized with standard deviation 2 here and 1 in the run",
        ),
        ({"moments": {}}, "'price' is standardized with mean none here and 2.9 in the run"),
        ({"lowest": -3.0}, "lowest is -3.0 here and None in the run (encoding.yaml)"),
        ({"raw": {"whole_floats": "text"}}, "whole_floats is 'text' here and 'the default' in the run"),
        (
            {"raw": {"features": [{"name": "price", "transform": "log1p"}]}},
            "'price' has transform log1p here and standardize in the run",
        ),
        (None, "numbers are not made of raw values as in the run (how, /data/encoding.yaml would tell)"),
    ],
)
def test_the_first_transform_that_differs(tmp_path: Path, change: dict | None, said: str) -> None:
    encoding = {
        "raw": {"label": "click", "features": [{"name": "price", "transform": "standardize"}]},
        "moments": {"price": [2.9, 1]},
    }
    for folder in ("run", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run/encoding.yaml").write_text(yaml.safe_dump(encoding), encoding="utf-8")
    if change is not None:
        changed = encoding | change | {"raw": {**encoding["raw"], **change.get("raw", {})}}
        (tmp_path / "data/encoding.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    assert refused(tmp_path, schema(9, "x", "e"), schema(9, "x", "f")).startswith(
        f"/data: {said}; encode the raw"
    )
