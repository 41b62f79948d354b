"""What an export says it takes: of every kind of column, with and without an encoding of raw rows."""

import json
import math

import pytest

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.export.request import request_of
from tests.trainer.encoder.exported import encoding_of

SCHEMA = Schema(
    label="click",
    tables={"user": 50, "item": 40},
    hashed=("item",),
    features=(
        Feature(name="age", kind="dense"),
        Feature(name="user", kind="categorical"),
        Feature(name="history", kind="sequence", table="item", max_length=6),
    ),
)


def test_of_files_that_are_read_as_they_are() -> None:
    request = request_of(SCHEMA, None, ["din"])
    user, item = (
        {"table": "user", "rows": 50, "ids": "ids"},
        {"table": "item", "rows": 40, "ids": "hash_text"},
    )
    assert request["columns"] == [
        {"column": "age", "feature": "age", "kind": "dense", "takes": "number", "missing": 0.0, "transform": "none"},
        {"column": "user", "feature": "user", "kind": "categorical", "takes": "integer", "missing": 0, **user},
        {"column": "history", "feature": "history", "kind": "sequence", "takes": "text", "missing": 0, **item,
         "max_length": 6, "keep": "recent"},
    ]  # fmt: skip
    assert [each["name"] for each in request["inputs"]] == ["dense", "categorical", "sequences"]
    assert [each["shape"][:2] for each in request["inputs"]] == [["rows", 1]] * 3
    assert [each["features"] for each in request["inputs"]] == [["age"], ["user"], ["history"]]
    assert isinstance(request["inputs"][2]["shape"][2], str)
    assert json.loads(json.dumps(request)) == request


def test_of_raw_rows() -> None:
    encoding = encoding_of(
        [
            {"name": "a", "kind": "dense", "column": "price", "transform": "standardize"},
            {"name": "b", "kind": "dense", "column": "price", "transform": "log_from_lowest"},
            {"name": "c", "kind": "categorical", "column": "price", "hash": 9, "hash_function": "hex"},
            {"name": "d", "kind": "multi_valued", "table": "word"},
            {"name": "e", "kind": "sequence", "table": "word", "max_length": 2, "keep": "oldest"},
            {"name": "f", "kind": "categorical"},
        ],
        tables={"f": 3}, null_values=["NA"], separator=";", whole_floats="text",
        moments={"a": (0.1, 3.0)}, lowest=-2.5,
    )  # fmt: skip
    encoding = encoding.model_copy(update={"transform": "cetnet.some.source"})
    request = request_of(encoding.raw.prepared({"word": 7}), encoding, ["fused", "x", "y"])
    a, b, c, d, e, f = request["columns"]
    assert [each["column"] for each in request["columns"]] == ["price", "price", "price", "d", "e", "f"]
    assert (a["mean"], a["deviation"], a["missing"]) == (0.1, 3.0, 0.0)
    assert (b["lowest"], b["missing"]) == (-2.5, math.log(0.0 + 2.5 + 2))
    assert (c["takes"], c["ids"], c["rows"]) == ("text", "hash_hex", 9)
    assert (d["ids"], d["file"], d["rows"], "max_length" in d) == (
        "vocabulary",
        "vocabularies/word.parquet",
        7,
        False,
    )
    assert (e["file"], e["max_length"], e["keep"]) == (d["file"], 2, "oldest")
    assert (f["takes"], f["ids"], f["rows"]) == ("integer", "ids", 3)
    assert (request["null_values"], request["separator"], request["whole_floats"]) == (["NA"], ";", "text")
    assert request["rows_from"].startswith("cetnet.some.source")


def test_what_no_file_says() -> None:
    schema = SCHEMA.model_copy(update={"hashed": None, "managed_collision": ("item",)})
    with pytest.raises(UserError, match=r"table 'item' has managed collision"):
        request_of(schema, None, ["din"])
