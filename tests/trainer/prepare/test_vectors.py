from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import vectors
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from cetnet.trainer.prepare.engine.vectors import open_vectors, write_vectors

SIZE = 5


def write(path: Path, keys: list[str], values: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["key"] = [int(key) for key in keys] if keys[0].isdigit() else keys
            file["value"] = values
    else:
        frame = pl.DataFrame({"key": keys, "vector": values.tolist()})
        if "array" in path.name:
            frame = frame.with_columns(pl.col("vector").cast(pl.Array(pl.Float32, values.shape[1])))
        frame.write_parquet(path, row_group_size=7)


@pytest.mark.parametrize("name", ["v.npy", "v.h5", "text.h5", "v.parquet", "array.parquet"])
def test_rows_are_in_the_order_of_the_keys(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "BLOCK_BYTES", 100)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, SIZE))
    order = np.arange(30) if name == "v.npy" else rng.permutation(30)
    keys = [f"video {n}" if name in ("text.h5", "array.parquet") else str(n) for n in order]
    write(tmp_path / name, keys, values)
    opened = open_vectors(tmp_path / name)
    assert (opened.keys.to_list(), opened.size) == (sorted(keys), SIZE)
    write_vectors(tmp_path, tmp_path / name)
    written = np.load(tmp_path / "vectors.npy")
    assert (written.dtype, written.shape) == (np.float32, (31, SIZE))
    assert not written[0].any()
    for key, value in zip(keys, values.astype(np.float32), strict=True):
        np.testing.assert_array_equal(written[1 + sorted(keys).index(key)], value)


@pytest.mark.parametrize(
    ("name", "keys", "values", "message"),
    [
        ("v.csv", ["1"], np.ones((1, 2)), r"v\.csv: vectors are read from \.npy, \.parquet, \.h5"),
        ("v.npy", [], np.ones(3), r"expected numbers \[values, size\], found \[3\]"),
        ("v.npy", [], np.array([["a"]]), "expected numbers"),
        ("v.npy", [], np.array([[None]], object), "not readable as vectors: .*Python objects"),
        ("v.npy", [], np.full((2, 2), np.inf), "has vectors that are not finite"),
        ("v.h5", ["1", "2", "3"], np.ones((2, 2)), "3 keys, but 2 values"),
        ("v.h5", ["1", "1"], np.ones((2, 2)), "has a key twice"),
        ("v.parquet", ["a", "a"], np.ones((2, 2)), "has a key twice"),
        ("v.parquet", ["a", "b"], np.full((2, 2), np.nan), "has vectors that are not finite"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, keys: list[str], values: np.ndarray, message: str) -> None:
    if name == "v.csv":
        (tmp_path / name).touch()
    else:
        write(tmp_path / name, keys, values)
    with pytest.raises(UserError, match=message) as caught:
        write_vectors(tmp_path, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_other_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    pl.DataFrame({"key": ["a", "b"], "vector": [[1.0, 2.0], [1.0]]}).write_parquet(path)
    with pytest.raises(UserError, match="not every vector has 2 numbers"):
        write_vectors(tmp_path, path)
    pl.DataFrame({"item": ["a"]}).write_parquet(path)
    with pytest.raises(UserError, match="not readable as vectors"):
        open_vectors(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not readable as vectors"):
        open_vectors(path)
    with pytest.raises(UserError, match="No such file"):
        open_vectors(tmp_path / "none.npy")


def raw_schema(**changes: Any) -> dict[str, Any]:
    return {
        "label": "click",
        "pretrained": {"picture": "pictures.parquet"},
        "features": [
            {"name": "user", "kind": "categorical"},
            {"name": "picture", "kind": "categorical"},
            {"name": "seen", "kind": "sequence", "table": "picture", "max_length": 3},
        ],
    } | changes


def test_csv_with_vectors(tmp_path: Path) -> None:
    """A vector's id doesn't depend on whether train has the value; the card counts what has no partner."""
    write(tmp_path / "pictures.parquet", ["c", "a", "b", "unseen"], np.arange(8.0).reshape(4, 2))
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(raw_schema()))
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "train.csv").write_text("click,user,picture,seen\n1,u,a,b|none\n0,v,none,\n1,u,a,a|a|a|a\n")
    for name in ("validation", "test"):
        (raw / f"{name}.csv").write_text("click,user,picture,seen\n1,u,c,a|other\n")
    out = tmp_path / "out"
    schema = prepare_tabular("csv", raw, out, tmp_path / "schema.yaml")
    assert schema == read_schema(out / "schema.yaml")
    assert (schema.tables, schema.pretrained) == ({"user": 3, "picture": 5}, {"picture": 2})
    np.testing.assert_array_equal(
        np.load(out / "pretrained/picture.npy"), [[0, 0], [2, 3], [4, 5], [0, 1], [6, 7]]
    )
    rows = [pq.read_table(out / name).to_pylist() for name in ("train", "test")]
    assert [(row["picture"], row["seen"]) for row in rows[0]] == [(1, [2, 0]), (0, []), (1, [1, 1, 1])]
    assert [(row["picture"], row["seen"]) for row in rows[1]] == [(3, [1, 0])]
    card = (out / "README.md").read_text()
    said = "given vectors of 2 numbers, of 4 values; 1 of them are in no row, and 2 values of rows have no vector"
    assert f"- `picture`: {said} (id 0)." in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": {"other": "pictures.npy"}}, "other"),
        ({"tables": {"picture": 3}}, "picture"),
        ({"pretrained": {"picture": "none.npy"}}, r"none\.npy"),
    ],
)
def test_bad_schemas(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.save(tmp_path / "pictures.npy", np.ones((3, 2)))
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(raw_schema(**changes)))
    (tmp_path / "raw.csv").write_text("click,user,picture,seen\n1,u,1,2\n")
    with pytest.raises(UserError, match=message) as caught:
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", tmp_path / "schema.yaml")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
