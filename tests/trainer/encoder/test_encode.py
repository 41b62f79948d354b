"""What an exported model reads of raw rows: what `cetnet prepare` makes of them, value by value."""

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cetnet.trainer.data.arrow_types import plain_table
from cetnet.trainer.encoder.encode import Encoder, WrongValue
from cetnet.trainer.prepare.engine.parquet_frames import raw_uses
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema, columns, hash_ids
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from tests.trainer.encoder.exported import encoding_of, write_request
from tests.trainer.prepare.slow import loop_hash

FEATURES: list[dict[str, Any]] = [
    {"name": "user", "kind": "categorical", "column": "the 'user'|\n"},
    {"name": "item", "kind": "categorical"},
    {"name": "again", "kind": "categorical", "column": "item", "table": "other"},
    {"name": "hashed", "kind": "categorical", "hash": 50},
    {"name": "hexed", "kind": "categorical", "hash": 7, "hash_function": "hex"},
    {"name": "given", "kind": "categorical"},
    {"name": "tags", "kind": "multi_valued", "table": "tag"},
    {"name": "hashes", "kind": "multi_valued", "hash": 10**12},
    {"name": "recent", "kind": "sequence", "table": "item", "max_length": 3},
    {"name": "oldest", "kind": "sequence", "table": "tag", "max_length": 2, "keep": "oldest"},
    {"name": "given_list", "kind": "sequence", "table": "given", "max_length": 3},
    {"name": "plain", "kind": "dense"},
    {"name": "log1p", "kind": "dense", "transform": "log1p"},
    {"name": "standard", "kind": "dense", "transform": "standardize"},
    {"name": "from_lowest", "kind": "dense", "transform": "log_from_lowest"},
]
GIVEN = 5
MOMENTS = {"standard": (3.25, 1.7)}
WORDS = [
    "",
    "a",
    "|",
    "a|b",
    "\0",
    '"',
    "'",
    "NA",
    "[1, 2]",
    "ä\u0301",
    "\r\n",
    "17",
    "17.0",
    "007",
    "true",
    "+3",
    " 3",
]
TEXTS = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=12),
    st.integers(-(2**70), 2**70).map(str),
    st.integers(0, 2**34).map(lambda n: f"{n:x}"),
)
LIST_TYPES = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view]


def arrow_ids(draw: st.DrawFn, rows: int, many: bool, given: bool) -> pa.Array:
    """A column of ids or values of any type that is accepted."""
    kinds = [
        "text",
        "int64",
        "uint64",
        "dictionary",
        *([] if given else ["bool"]),
        *(["cells"] if many else []),
    ]
    kind = draw(st.sampled_from(kinds))
    integers = st.integers(-1, GIVEN) | st.sampled_from([2**53 + 1, 2**63 - 1])
    values, of_type = {
        "int64": (integers | st.just(-(2**63)), pa.int64()),
        "uint64": (integers.map(abs) | st.just(2**64 - 1), pa.uint64()),
        "bool": (st.booleans(), pa.bool_()),
    }.get(kind, (TEXTS if not given else st.integers(-1, GIVEN).map(str) | TEXTS, pa.string()))
    if kind == "cells":
        cells = st.lists(values, max_size=5).map("|".join)
        return pa.array(draw(st.lists(st.none() | cells, min_size=rows, max_size=rows)), pa.large_string())
    if many:
        lists = draw(
            st.lists(st.none() | st.lists(st.none() | values, max_size=5), min_size=rows, max_size=rows)
        )
        make = draw(st.sampled_from(LIST_TYPES))
        return pa.array(lists, make(of_type))
    flat = pa.array(draw(st.lists(st.none() | values, min_size=rows, max_size=rows)), of_type)
    return flat.dictionary_encode() if kind == "dictionary" else flat


def arrow_numbers(draw: st.DrawFn, rows: int) -> pa.Array:
    """A column of numbers of any type that is accepted; rarely of some that no column holds."""
    numbers = st.integers(-(10**6), 10**6).map(lambda n: n / 64) | st.floats(-3e38, 3e38)
    values, of_type = draw(
        st.sampled_from(
            [
                (numbers | st.just(math.nan), pa.float64()),
                (st.floats(width=32, allow_infinity=False), pa.float32()),
                (st.floats(-60_000, 60_000, width=16), pa.float16()),
                (st.integers(-(2**63), 2**63 - 1), pa.int64()),
                (st.integers(0, 2**64 - 1), pa.uint64()),
                (st.booleans(), pa.bool_()),
                (st.decimals(-1000, 1000, places=3).map(Decimal), pa.decimal128(20, 3)),
                (
                    numbers.map(str) | st.sampled_from(["NA", "nan", "-NaN", "+1.5", "1e3", "007", ".5"]),
                    pa.string(),
                ),
                (st.sampled_from(["1", "x", "inf", "nan(1)", "1e39", " 1"]), pa.string()),
            ]
        )
    )
    return pa.array(draw(st.lists(st.none() | values, min_size=rows, max_size=rows)), of_type)


@st.composite
def cases(draw: st.DrawFn) -> tuple[RawEncoding, pa.Table]:
    rows = draw(st.integers(0, 6))
    table: dict[str, pa.Array] = {"y": pa.array([0] * rows)}
    encoding = encoding_of(
        FEATURES,
        tables={"given": GIVEN},
        null_values=draw(st.sampled_from([[], ["NA"], ["NA", "3", "a"]])),
        whole_floats=draw(st.sampled_from(["integer", "text"])),
        moments=MOMENTS,
        lowest=draw(st.sampled_from([-5.5, 0.0, 2.0])),
    )
    for feature in encoding.raw.features:
        if feature.raw in table:
            continue
        if feature.kind == "dense":
            table[feature.raw] = arrow_numbers(draw, rows)
        elif feature.name == "hexed":
            digits = st.none() | st.sampled_from(
                ["", "NA", "ff", "FFFFFFFF", "80000000", "-0", "+0f", "00000000f", "100000000"]
            )
            table[feature.raw] = pa.array(draw(st.lists(digits, min_size=rows, max_size=rows)), pa.string())
        else:
            is_given = (feature.table or feature.name) == "given"
            table[feature.raw] = arrow_ids(draw, rows, feature.kind != "categorical", is_given)
    return encoding, pa.table(table)


def typed(table: pa.Table, spec: RawSchema) -> tuple[dict[str, list[Any]], set[str]]:
    """The values that `cetnet prepare` reads, before they are ids, and the columns in which it finds mistakes."""
    frame = pl.DataFrame(plain_table(table, dict(raw_uses(spec))))
    read = list(columns(Path("raw.parquet"), frame.schema, spec))
    mistaken = {
        c.name for c in read for check in c.checks if frame.select(check.bad.fill_null(True).any()).item()
    }
    values = {c.name: frame.select(c.value.alias("v"))["v"].to_list() for c in read}
    for feature in spec.features:
        if feature.hash is not None and feature.kind == "categorical":  # found wrong when they are hashed
            texts = pl.Series(values[feature.name], dtype=pl.String).drop_nulls()
            mistaken |= {feature.name} if (hash_ids(texts, feature) < 0).any() else set()
    return values, mistaken


def slow_id(value: str | int | None, feature: RawFeature, vocabulary: dict[str, int]) -> int:
    if value is None:
        return 0
    if isinstance(value, int):  # an id already
        return value if 0 <= value < GIVEN else 0
    if feature.hash is None:
        return vocabulary.get(value, 0)
    if feature.hash_function == "text":
        return 1 + loop_hash(value) % (feature.hash - 1)
    number = int(value, 16)
    return (number - 2**32 if number >= 2**31 else number) % feature.hash


def slow_number(value: float | None, feature: RawFeature, lowest: float) -> float:
    if feature.transform == "log_from_lowest":
        return math.log(max(value or 0.0, lowest) - lowest + 2)
    if value is None:
        return 0.0
    if feature.transform == "log1p":
        return math.copysign(math.log1p(abs(value)), value)
    mean, deviation = MOMENTS.get(feature.name, (0.0, 1.0))
    return (value - mean) / deviation


def vocabularies_of(values: dict[str, list[Any]], spec: RawSchema) -> dict[str, list[str]]:
    """Every second of the distinct values of each table, and some that no row has."""
    found: dict[str, list[str]] = {}
    for table in spec.vocabulary_tables:
        flat = [
            v
            for f in spec.features_of(table)
            for row in values[f.name]
            for v in (row if isinstance(row, list) else [row])
        ]
        found[table] = sorted({v for v in flat if v is not None} | {"b", "unseen"})[::2]
    return found


@given(cases())
def test_inputs_are_what_prepare_makes(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    encoding, table = case
    spec = encoding.raw
    values, mistaken = typed(table, spec)
    vocabularies = vocabularies_of(values, spec)
    folder = tmp_path_factory.mktemp("export")
    schema = write_request(folder, encoding, vocabularies)
    encoder = Encoder(folder)
    raw_of = {f.name: f.raw for f in spec.features}
    unknown = {
        "given",
        "given_list",
    }  # whose values may be beyond the table: the model takes them for unknown ones
    try:
        inputs = encoder.encode(table)
    except WrongValue as error:
        message = f"column {error.column!r}, row {error.row} (from 0): expected "
        if error.column not in {raw_of[name] for name in mistaken} or not str(error).startswith(message):
            raise
        return
    assert mistaken <= unknown
    rows = table.num_rows
    ids: dict[str, list[Any]] = {}
    for feature in spec.features:
        if feature.kind != "dense":
            of_table = vocabularies.get(feature.table or feature.name, ())
            vocabulary = {value: number for number, value in enumerate(of_table, 1)}
            ids[feature.name] = [
                [slow_id(each, feature, vocabulary) for each in row]
                if isinstance(row, list)
                else slow_id(row, feature, vocabulary)
                for row in values[feature.name]
            ]
    categorical = [ids[feature.name] for feature in schema.of_kind("categorical")]
    assert inputs["categorical"].tolist() == [list(row) for row in zip(*categorical, strict=True)]
    for name, kind in (("multi_valued", "multi_valued"), ("sequences", "sequence")):
        lists = [ids[feature.name] for feature in schema.features if feature.kind == kind]
        longest = max([1, *(len(row) for of_feature in lists for row in of_feature)])
        assert inputs[name].shape == (rows, len(lists), longest)
        padded = [
            [row + [-1] * (longest - len(row)) for row in of_row] for of_row in zip(*lists, strict=True)
        ]
        assert inputs[name].tolist() == padded
    dense = [
        [slow_number(value, feature, encoding.lowest or 0.0) for value in values[feature.name]]
        for feature in spec.features
        if feature.kind == "dense"
    ]
    np.testing.assert_array_equal(inputs["dense"], np.array(dense, np.float64).T.astype(np.float32))
    assert [each.dtype for each in inputs.values()] == [np.float32, np.int64, np.int64, np.int64]


def encoder_of(
    folder: Path, *features: dict[str, Any], vocabulary: tuple[str, ...] = (), **others: Any
) -> Encoder:
    """An encoder of features that share a table `t`, which has these values."""
    features = tuple({"name": "x", "kind": "categorical"} | feature for feature in features)
    encoding = encoding_of([f if f["kind"] == "dense" else {"table": "t"} | f for f in features], **others)
    write_request(folder, encoding, {"t": vocabulary} if encoding.raw.vocabulary_tables else {})
    return Encoder(folder)


@pytest.mark.parametrize(
    ("vocabulary", "good", "bad"),
    [
        (
            ("17", "a"),
            [["17", "a", "b", "1.5", None, ""], [17, 18, None]],
            [["17", "a", "17.0"], ["3.00"], ["1.7e+18"]],
        ),
        (("17.0",), [["17.0", "18.0", "a"]], [["17.0", "17"], [17]]),
        (("a",), [["17"], ["17.0"], [17]], [["1e+5"]]),
    ],
)
def test_ids_written_as_floats_are_no_unknown_ids(
    tmp_path: Path, vocabulary: tuple[str, ...], good: list[list[Any]], bad: list[list[Any]]
) -> None:
    """Pandas writes a column of integers so where values are missing: all of the day's ids would be unknown."""
    encoder = encoder_of(tmp_path, {}, vocabulary=vocabulary)
    ids = {value: number for number, value in enumerate(vocabulary, 1)}
    for values in good:
        found = encoder.encode(pa.table({"x": values}))["categorical"][:, 0].tolist()
        assert found == [ids.get(str(value), 0) for value in values]
    for values in bad:
        with pytest.raises(WrongValue) as error:
            encoder.encode(pa.table({"x": values}), first_row=10)
        assert (error.value.column, error.value.row) == ("x", 10 + len(values) - 1)
    text = encoder_of(tmp_path, {}, vocabulary=vocabulary, whole_floats="text")
    assert text.encode(pa.table({"x": ["17.0", "17", "1.7e+18"]}))["categorical"].shape == (3, 1)


@pytest.mark.parametrize(("form", "good", "bad"), [("integer", "17", "17.0"), ("whole", "17.0", "17")])
def test_hashed_ids_in_another_form_than_in_training(tmp_path: Path, form: str, good: str, bad: str) -> None:
    """They would get other ids, without a word."""
    encoder = encoder_of(tmp_path, {"hash": 50}, forms={"t": [form]})
    found = encoder.encode(pa.table({"x": [good, "a", None, ""]}))["categorical"][:, 0]
    assert found.tolist() == [1 + loop_hash(good) % 49, 1 + loop_hash("a") % 49, 0, 0]
    with pytest.raises(WrongValue, match=rf"row 1 .*expected ids written as {good}, as in training"):
        encoder.encode(pa.table({"x": [good, bad]}))
    unsaid = encoder_of(tmp_path, {"hash": 50})
    assert unsaid.encode(pa.table({"x": [bad]}))["categorical"].tolist() == [[1 + loop_hash(bad) % 49]]


def test_two_kinds_of_hashes_in_a_table(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, {"hash": 50}, {"name": "y2", "hash": 50, "hash_function": "hex"})
    found = encoder.encode(pa.table({"x": ["1f"], "y2": ["1f"]}))["categorical"]
    assert found.tolist() == [[1 + loop_hash("1f") % 49, 0x1F]]


@pytest.mark.parametrize(
    ("feature", "column", "message"),
    [
        ({}, [1.5], "column 'x' is double, but the model wants an integer or text: cast it, or make"),
        (
            {},
            [["a"]],
            "column 'x' is list<.*>, but the model wants an integer or text: write one value a row",
        ),
        (
            {"kind": "multi_valued"},
            [7],
            "column 'x' is int64, but the model wants a list of integers or texts",
        ),
        (
            {"kind": "multi_valued"},
            ["[1, 2]"],
            r"column 'x', row 0 \(from 0\): expected values with '\|' between them",
        ),
        ({"kind": "multi_valued"}, [[0.5]], "column 'x' is list<.*double>, but the model wants a list of"),
        (
            {"kind": "dense"},
            ["1", "a"],
            r"column 'x', row 1 \(from 0\): expected a finite number or nothing, found 'a'",
        ),
        ({"kind": "dense"}, [1.0, -float("inf")], r"column 'x', row 1 \(from 0\): expected a finite number"),
        ({"kind": "dense"}, [b"1"], "column 'x' is binary, but the model wants a number"),
        (
            {"kind": "dense"},
            [["1"]],
            "column 'x' is list<.*>, but the model wants a number: write one value a row$",
        ),
        (
            {"kind": "dense", "transform": "standardize"},
            [3e38],
            "row 0 .*: expected a number that standardize can",
        ),
        (
            {"hash": 5, "hash_function": "hex", "table": "h"},
            ["ff", "fg"],
            r"row 1 \(from 0\): expected a hexadecimal number",
        ),
    ],
)
def test_what_no_column_holds(
    tmp_path: Path, feature: dict[str, Any], column: list[Any], message: str
) -> None:
    encoder = encoder_of(tmp_path, {"name": "other"}, feature, moments={"x": (0.0, 1e-3)})
    with pytest.raises(ValueError, match=f"^.*{message}"):
        encoder.encode(pa.table({"x": column, "other": ["a"] * len(column)}))


def test_columns_that_are_missing_there_twice_or_unknown(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, {}, vocabulary=("a",))
    assert encoder.encode(pa.table({"y": [1], "x": ["a"]}))["categorical"].tolist() == [[1]]
    with pytest.raises(ValueError, match=r"^no column 'x', which the model reads; there are 'y', 'X'$"):
        encoder.encode(pa.table({"y": [1], "X": ["a"]}))
    with pytest.raises(ValueError, match=r"^2 columns 'x', which the model reads; there are 'x', 'x'$"):
        encoder.encode(pa.table([["a"], ["a"]], names=["x", "x"]))


def test_ids_that_the_column_holds_already(tmp_path: Path) -> None:
    """Texts of any length are ids; those of no row are unknown."""
    encoder = encoder_of(tmp_path, {"kind": "multi_valued"}, tables={"t": 4}, null_values=["3"])
    lists = [
        ["+1", "002", "-0", "3", "", None],
        ["-1", "4", "9" * 5000, "-" + "9" * 5000, "0" * 5000 + "2"],
        [],
    ]
    assert encoder.encode(pa.table({"x": lists}))["multi_valued"].tolist() == [
        [[1, 2, 0, 0, 0, 0]], [[0, 0, 0, 0, 2, -1]], [[-1] * 6]
    ]  # fmt: skip
    numbers = pa.array([[1, 3, None], [2**64 - 1, 4]], pa.list_(pa.uint64()))
    assert encoder.encode(pa.table({"x": numbers}))["multi_valued"].tolist() == [[[1, 0, 0]], [[0, 0, -1]]]
    for wrong in ("1.0", "0x1", "a", "１", "+-1"):
        with pytest.raises(WrongValue, match=r"row 1 .*expected an id from 0 to 3"):
            encoder.encode(pa.table({"x": [["1"], ["2", wrong]]}))


def test_requests_that_are_none(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, {}, vocabulary=("a",))
    request = encoder.request
    for change in ({"format": 2}, {"columns": [{}]}, {"columns": 1}, {"inputs": None}, {"null_values": 3}):
        (tmp_path / "request.json").write_text(json.dumps(request | change), encoding="utf-8")
        with pytest.raises(ValueError, match=r"request.json: not the request.json of an exported model"):
            Encoder(tmp_path)
    outside = request["columns"][0] | {"table": "../vocabularies/t"}
    (tmp_path / "request.json").write_text(json.dumps(request | {"columns": [outside]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"table '../vocabularies/t' can't be a file's name"):
        Encoder(tmp_path)
