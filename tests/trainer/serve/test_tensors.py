"""Tensors of the protocol as raw columns, against plain Python."""

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cetnet.trainer.serve.tensors import (
    NUMPY,
    BadRequest,
    Limits,
    TooLarge,
    column,
    from_bytes,
    from_json,
    num_missing,
    strict_json,
    tensor,
)

LIMITS = Limits(rows=100, values=50, padded=1000)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INTEGERS = [name for name in NUMPY if "INT" in name]


@st.composite
def numbers(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A datatype and some of its values."""
    datatype = draw(st.sampled_from(list(NUMPY)))
    if datatype == "BOOL":
        values = st.booleans()
    elif datatype[:2] == "FP":
        values = st.floats(width=int(datatype[2:]), allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
    else:
        bounds = np.iinfo(NUMPY[datatype])
        values = st.integers(int(bounds.min), int(bounds.max))
    return datatype, draw(st.lists(values, min_size=1, max_size=6))


@given(numbers(), st.data())
def test_numbers_come_as_they_are(drawn: tuple[str, list[Any]], data: st.DataObject) -> None:
    datatype, values = drawn
    about = tensor("a", datatype, [len(values)], LIMITS)
    binary = np.array(values, NUMPY[datatype]).tobytes()
    assert from_bytes(about, binary).to_pylist() == values
    given_values = [data.draw(st.sampled_from([value, None])) for value in values]
    array = from_json(about, json.loads(json.dumps(given_values)))
    assert array.to_pylist() == given_values
    assert num_missing(array) == given_values.count(None)
    for wrong in (binary[:-1], binary + b"\0", b""):
        with pytest.raises(BadRequest):
            from_bytes(about, wrong)


@given(st.lists(TEXT, min_size=1, max_size=6), st.data())
def test_texts_come_as_they_are(texts: list[str], data: st.DataObject) -> None:
    about = tensor("a", "BYTES", [len(texts)], LIMITS)
    expected = [text or None for text in texts]
    assert from_json(about, texts).to_pylist() == expected
    coded = [text.encode() for text in texts]
    binary = b"".join(struct.pack("<I", len(text)) + text for text in coded)
    assert from_bytes(about, binary).to_pylist() == expected
    cut = data.draw(st.integers(0, len(binary) - 1))
    for wrong in (binary[:cut], binary + b"\0\0\0\0"):
        with pytest.raises(BadRequest):
            from_bytes(about, wrong)


@given(st.lists(st.lists(st.one_of(st.none(), TEXT), max_size=5), min_size=1, max_size=5))
def test_lists_end_where_their_values_do(lists: list[list[str | None]]) -> None:
    width = max(map(len, lists))
    rows = [[*each, *[None] * (width - len(each))] for each in lists]
    about = tensor("a", "BYTES", [len(rows), width], LIMITS)
    flat = [value for row in rows for value in row]
    expected = []
    for row in lists:
        values = [value or None for value in row]
        while values and values[-1] is None:
            values.pop()
        expected.append(values)
    for data in (rows, flat):
        array = column(about, from_json(about, data), is_list=True, separator="|", limits=LIMITS)
        assert array.to_pylist() == expected
    assert num_missing(array) == expected.count([])


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_are_never_bent(datatype: str) -> None:
    bounds = np.iinfo(NUMPY[datatype])
    about = tensor("a", datatype, [1], LIMITS)
    for value in (int(bounds.min) - 1, int(bounds.max) + 1, 1.5, 1.0, True, "1", [1], {}):
        with pytest.raises(BadRequest, match="'a'"):
            from_json(about, [value])


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("FP32", "1"),
        ("FP64", True),
        ("FP64", 10**400),
        ("BOOL", 1),
        ("BYTES", 1),
        ("BYTES", False),
        ("BYTES", "\ud800"),
        ("BYTES", b"\xff"),
    ],
)
def test_other_values_are_refused(datatype: str, value: object) -> None:
    with pytest.raises(BadRequest, match="'a'"):
        from_json(tensor("a", datatype, [2], LIMITS), [None, value])


def test_nan_in_binary_data_is_missing() -> None:
    for datatype in ("FP16", "FP32", "FP64"):
        about = tensor("a", datatype, [2], LIMITS)
        array = from_bytes(about, np.array([math.nan, 1], NUMPY[datatype]).tobytes())
        assert array.to_pylist() == [None, 1.0]


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "problem"),
    [
        ("", "BYTES", [1], "name is ''"),
        (None, "BYTES", [1], "name is None"),
        ("a", "bytes", [1], "none of BYTES"),
        ("a", ["BYTES"], [1], "none of BYTES"),
        ("a", "BYTES", [0], "no rows"),
        ("a", "BYTES", [-1], "shape"),
        ("a", "BYTES", [1.0], "shape"),
        ("a", "BYTES", [True], "shape"),
        ("a", "BYTES", [1, 1, 1], "shape"),
        ("a", "BYTES", "1", "shape"),
        ("a", "BYTES", {}, "shape"),
    ],
)
def test_what_is_said_of_a_tensor_is_checked(name: Any, datatype: Any, shape: Any, problem: str) -> None:
    with pytest.raises(BadRequest, match=problem):
        tensor(name, datatype, shape, LIMITS)


@pytest.mark.parametrize("shape", [[101], [1, 51], [50, 50], [2**70], [1, 2**63]])
def test_too_much_is_refused_before_it_is_read(shape: list[int]) -> None:
    with pytest.raises(TooLarge):
        tensor("a", "BYTES", shape, LIMITS)


def test_long_lists_of_text_are_refused_before_they_are_split() -> None:
    about = tensor("a", "BYTES", [30], LIMITS)
    texts = ["x"] * 29 + ["x|" * 49]
    with pytest.raises(TooLarge, match="30 rows, a list of 50 values"):
        column(about, from_json(about, texts), is_list=True, separator="|", limits=LIMITS)


def test_a_column_of_single_values_takes_one_a_row() -> None:
    for shape in ([2], [2, 1]):
        about = tensor("a", "INT64", shape, LIMITS)
        array = column(about, from_json(about, [1, 2]), is_list=False, separator="|", limits=LIMITS)
        assert array.to_pylist() == [1, 2]
    wide = tensor("a", "INT64", [1, 2], LIMITS)
    with pytest.raises(BadRequest, match="one value a row"):
        column(wide, from_json(wide, [1, 2]), is_list=False, separator="|", limits=LIMITS)
    flat = tensor("a", "INT64", [2], LIMITS)
    with pytest.raises(BadRequest, match="holds lists"):
        column(flat, from_json(flat, [1, 2]), is_list=True, separator="|", limits=LIMITS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"{", "not JSON"),
        (b"[1] 2", "not JSON"),
        (b"NaN", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b'{"a": 1, "a": 2}', "'a' comes twice"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 5000, "not JSON"),
    ],
)
def test_what_is_no_json_is_refused(text: bytes, problem: str) -> None:
    with pytest.raises(BadRequest, match=problem):
        strict_json(text)


def test_integers_keep_all_of_their_digits() -> None:
    assert strict_json(b"[9007199254740993, 18446744073709551617]") == [2**53 + 1, 2**64 + 1]
