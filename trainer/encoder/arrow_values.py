"""Which Arrow types a column may have, for what it is used as, and the one plain form that readers go on with."""

from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Role = Literal["number", "id", "value", "time"]
Kind = Literal["integer", "boolean", "float", "decimal", "text", "date", "timestamp", "null"]
ACCEPTED: dict[Role, tuple[Kind, ...]] = {
    "number": ("integer", "boolean", "float", "decimal", "null"),
    "id": ("integer", "null"),
    "value": ("integer", "boolean", "text", "null"),
    "time": ("integer", "float", "decimal", "date", "timestamp", "null"),
}
"""number: label, weight, true probability, dense. id: a row of a table, a prepared group. value: a value that becomes
an id, a raw group. time: seconds since 1970, UTC."""
_WORDS: dict[Role, tuple[str, str]] = {
    "number": ("a number", "numbers"),
    "id": ("an integer", "integers"),
    "value": ("an integer or text", "integers or texts"),
    "time": ("integer seconds, a date or a time", "times"),
}
_PLAIN_NULL = {"number": pa.float64(), "id": pa.int64(), "value": pa.large_string(), "time": pa.int64()}


class Use(NamedTuple):
    """What a column is for.

    Attributes:
        role: of its values.
        many: it holds a list of them in each row.
        text: it may also hold text, for `cetnet prepare` to read: the values, or with `many` whole lists of them.
    """

    role: Role
    many: bool = False
    text: bool = False


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves: of a dictionary, of runs, of what an extension is stored as."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def is_accepted(kind: pa.DataType, use: Use) -> bool:
    """Whether a column of this type can be what it is used as."""
    kind = value_type(kind)
    if use.many:
        element = _element(kind)
        if element is None:
            return _kind(kind) == "null" or (use.text and _kind(kind) == "text")
        kind = value_type(element)
    found = _kind(kind)
    return found in ACCEPTED[use.role] or (use.text and found == "text")


def words(use: Use) -> str:
    """What a column of this use holds."""
    singular, plural = _WORDS[use.role]
    return f"a list of {plural}" if use.many else singular


def remedy(kind: pa.DataType, use: Use) -> str:
    """What to do with a column whose type isn't accepted."""
    kind = value_type(kind)
    element = _element(kind)
    is_feature = use.role in ("id", "value")
    if use.many and element is None and _kind(kind) is not None:
        return "write lists, or make it categorical"
    if not use.many and element is not None:
        return "write one value a row" + (", or make it multi_valued or a sequence" if is_feature else "")
    if not use.many and is_feature and _kind(kind) in ("float", "decimal"):
        return "cast it, or make a feature of it dense"
    return "cast it"


def plain(column: pa.ChunkedArray, use: Use) -> pa.ChunkedArray:
    """A column of an accepted type in plain form: the same values, in one of a few types.

    Numbers, ids and values are integers of any width, booleans, float32, float64, string or large_string; directly
    read values may be a dictionary of these; times are integers or text; lists are list or large_list of these. Of
    the type null come nulls of a plain type.
    """
    if is_plain(column.type, use):
        return column
    return pa.chunked_array(
        [_plain_array(chunk, use) for chunk in column.chunks], _plain_type(column.type, use)
    )


def is_plain(kind: pa.DataType, use: Use) -> bool:
    """Whether a type is one of those that `plain` gives."""
    if use.many:
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            return False
        kind = kind.value_type
    if pa.types.is_dictionary(kind) and use.role == "value" and not use.text:
        kind = kind.value_type
    if use.role == "time":
        return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return _kind(kind) in ("integer", "float", "boolean", "text") and not (
        pa.types.is_float16(kind) or pa.types.is_string_view(kind)
    )


def _kind(kind: pa.DataType) -> Kind | None:
    is_a = pa.types
    if is_a.is_integer(kind):
        return "integer"
    if is_a.is_floating(kind):
        return "float"
    if is_a.is_boolean(kind):
        return "boolean"
    if is_a.is_string(kind) or is_a.is_large_string(kind) or is_a.is_string_view(kind):
        return "text"
    if is_a.is_decimal(kind):
        return "decimal"
    if is_a.is_timestamp(kind):
        return "timestamp"
    if is_a.is_date(kind):
        return "date"
    return "null" if is_a.is_null(kind) else None


def _element(kind: pa.DataType) -> pa.DataType | None:
    """The type in a list; None if it is none, or one that can't hold a value (which pyarrow can't read either)."""
    is_a = pa.types
    if is_a.is_fixed_size_list(kind):
        return kind.value_type if kind.list_size else None
    lists = (is_a.is_list, is_a.is_large_list, is_a.is_list_view, is_a.is_large_list_view)
    return kind.value_type if any(is_list(kind) for is_list in lists) else None


def _encoded(array: pa.Array) -> tuple[pa.Array, pa.Array | None] | None:
    """What a dictionary, runs or an extension are made of, and which of it each row has (None: its own)."""
    if isinstance(array.type, pa.BaseExtensionType):
        return array.storage, None
    if pa.types.is_dictionary(array.type):
        return array.dictionary, array.indices
    if pa.types.is_run_end_encoded(array.type):
        rows = array.offset + np.arange(len(array))
        return array.values, pa.array(np.searchsorted(array.run_ends.to_numpy(), rows, side="right"))
    return None


def _plain_array(array: pa.Array, use: Use) -> pa.Array:
    if encoded := _encoded(array):
        values, rows = encoded
        values = _plain_array(values, use)
        return values if rows is None else values.take(rows)
    kind = _kind(array.type)
    if use.many and kind is None:
        return _plain_lists(array, use)
    if kind == "null":
        return pa.nulls(len(array), _plain_type(array.type, use))
    if kind == "text":
        array = array.cast(pa.large_string())
        return pc.if_else(pc.equal(array, ""), None, array) if use.many else array  # an empty list of texts
    if use.role == "time" and kind != "integer":
        return _seconds(array)
    # a decimal by its text: its own cast to a float is not the nearest one
    return (array.cast(pa.string()) if kind == "decimal" else array).cast(_plain_type(array.type, use))


def _plain_lists(array: pa.Array, use: Use) -> pa.Array:
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_fixed_size_list(array.type):
        starts = (array.offset + np.arange(len(array))) * array.type.list_size
    else:
        starts = array.offsets.to_numpy()[: len(array)].astype(np.int64)
    ends = lengths.cumsum()
    at = np.repeat(starts - ends + lengths, lengths) + np.arange(lengths.sum())  # where each value is
    first, stop = (int(at.min()), int(at.max()) + 1) if len(at) else (0, 0)
    values = _plain_array(array.values.slice(first, stop - first), use._replace(many=False))
    if len(at) != len(values) or (np.diff(at) != 1).any():
        values = values.take(pa.array(at - first))
    return pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), values, mask=array.is_null())


def _plain_type(kind: pa.DataType, use: Use) -> pa.DataType:
    kind = value_type(kind)
    if use.many and (element := _element(kind)) is not None:
        return pa.large_list(_plain_type(element, use._replace(many=False)))
    found = _kind(kind)
    if found == "null":
        plain_null = _PLAIN_NULL[use.role]
        return pa.large_list(plain_null) if use.many else plain_null
    if found == "text":
        return pa.large_string()
    if use.role == "time" and found != "integer":
        return pa.int64()
    if found == "decimal":
        return pa.float64()
    return pa.float32() if pa.types.is_float16(kind) else kind


_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _seconds(array: pa.Array) -> pa.Array:
    """Whole seconds since 1970 (int64), rounded down; null for what is not finite."""
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_date32(array.type):
        return _int64(array.cast(pa.int32()).fill_null(0).to_numpy().astype(np.int64) * 86_400, missing)
    if pa.types.is_timestamp(array.type) or pa.types.is_date64(array.type):
        unit = array.type.unit if pa.types.is_timestamp(array.type) else "ms"
        return _int64(array.cast(pa.int64()).fill_null(0).to_numpy() // _UNITS[unit], missing)
    numbers = np.floor(_plain_array(array, Use("number")).cast(pa.float64()).fill_null(0).to_numpy())
    missing = missing | ~(np.abs(numbers) < 2**63)
    return _int64(np.where(missing, 0, numbers).astype(np.int64), missing)


def _int64(values: NDArray[np.int64], missing: NDArray[np.bool_]) -> pa.Array:
    return pa.array(values, mask=missing)
