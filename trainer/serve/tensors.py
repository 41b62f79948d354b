"""The protocol's tensors as Arrow columns of raw rows: everything in them is checked here or by the encoder.

Imports neither KServe nor torch.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NUMPY = {
    "BOOL": np.dtype("?"),
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
"""The protocol's datatypes as they lie in binary data, but BYTES."""


class BadRequest(ValueError):
    """What a client sent can't be scored; the message says what, where, and what is expected."""


class TooLarge(BadRequest):
    """It could be, but is more than the server takes at once."""


@dataclass(frozen=True)
class Limits:
    """What one request may hold.

    Attributes:
        rows: rows.
        values: values of a list.
        padded: rows times the longest list of a column: all of its lists become as long.
        bytes: of its body or message.
    """

    rows: int = 4096
    values: int = 10_000
    padded: int = 1 << 20
    bytes: int = 16 << 20


@dataclass(frozen=True)
class Tensor:
    """What is said of a tensor, checked: its name, one of the protocol's datatypes, rows, and width if it has one."""

    name: str
    datatype: str
    rows: int
    width: int | None

    @property
    def count(self) -> int:
        """Number of values."""
        return self.rows * (1 if self.width is None else self.width)


def tensor(name: object, datatype: object, shape: object, limits: Limits) -> Tensor:
    """Check what is said of an input tensor.

    Raises:
        BadRequest: it isn't of the protocol, or its shape isn't `[rows]` or `[rows, values]`.
    """
    if not isinstance(name, str) or not name:
        raise BadRequest(f"an input's name is {shown(name)}; a column's name is expected")
    if not isinstance(datatype, str) or (datatype not in NUMPY and datatype != "BYTES"):
        raise BadRequest(f"{shown(name)}: datatype {shown(datatype)} is none of BYTES, {', '.join(NUMPY)}")
    sizes = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else []
    if len(sizes) not in (1, 2) or any(type(size) is not int or size < 0 for size in sizes):
        raise BadRequest(
            f"{shown(name)}: shape {shown(shape)}; [rows] is expected, or [rows, values] of a list"
        )
    if sizes[0] > limits.rows:
        raise TooLarge(f"{shown(name)}: {sizes[0]} rows; send at most {limits.rows} in a request")
    if sizes[0] == 0:
        raise BadRequest(f"{shown(name)}: no rows; send at least one")
    if len(sizes) == 2:
        check_lists(name, sizes[0], sizes[1], limits)
    return Tensor(name, datatype, sizes[0], sizes[1] if len(sizes) == 2 else None)


def check_lists(name: str, rows: int, longest: int, limits: Limits) -> None:
    """Raise TooLarge for lists that would need much memory, since each is filled up to the longest."""
    if longest > limits.values:
        raise TooLarge(f"{shown(name)}: a list of {longest} values; send at most {limits.values}")
    if rows * longest > limits.padded:
        raise TooLarge(
            f"{shown(name)}: {rows} rows, a list of {longest} values; their product may be {limits.padded}: "
            "send less rows at once"
        )


def from_json(about: Tensor, data: object) -> pa.Array:
    """The values of a JSON array, flat or as nested as the shape; null and the empty text are missing.

    Raises:
        BadRequest: there are more or less values than the shape says, or of another type.
    """
    if not isinstance(data, list):
        raise BadRequest(f"{shown(about.name)}: data is {shown(data)}; an array is expected")
    if about.width is not None and about.rows == len(data) and all(type(row) is list for row in data):
        if any(len(row) != about.width for row in data):
            raise BadRequest(f"{shown(about.name)}: rows of different lengths; fill them up with null")
        data = [value for row in data for value in row]
    if len(data) != about.count:
        raise BadRequest(f"{shown(about.name)}: {len(data)} values; its shape says {about.count}")
    return from_values(about, data)


def from_values(about: Tensor, values: Sequence[Any]) -> pa.Array:
    """An Arrow array of Python's values; null and the empty text are missing.

    Raises:
        BadRequest: one is of another type, or beyond the datatype's range.
    """
    kinds = set(map(type, values)) - {type(None)}
    expected: set[type] = {str, bytes} if about.datatype == "BYTES" else {bool}
    if about.datatype[:2] == "FP":
        expected = {int, float}
    elif "INT" in about.datatype:
        expected = {int}
    if kinds - expected:
        position, value = next((i, v) for i, v in enumerate(values) if type(v) in kinds - expected)
        raise BadRequest(
            f"{_place(about, position)}: {shown(value)} in a tensor of {about.datatype}"
            + ("; send numbers as text, or in a tensor of their datatype" * (about.datatype == "BYTES"))
        )
    try:
        if about.datatype == "BYTES":
            return pa.array([value or None for value in values], pa.large_string())
        if about.datatype[:2] == "FP":
            numbers = [None if value is None else float(value) for value in values]
            # No float16: it is what few kernels of Arrow know.
            kind = pa.float64() if about.datatype == "FP64" else pa.float32()
            return pa.array(numbers, kind, from_pandas=True)
        return pa.array(values, pa.from_numpy_dtype(NUMPY[about.datatype]))
    except UnicodeEncodeError as error:
        raise BadRequest(f"{shown(about.name)}: {error.object!a} is no text (half of a character)") from None
    except (pa.ArrowException, OverflowError) as error:
        raise BadRequest(f"{shown(about.name)}: a value is no {about.datatype} ({error!s:.200})") from None


def from_bytes(about: Tensor, data: bytes) -> pa.Array:
    """The values of binary data: numbers little-endian, BYTES each after its length (uint32); NaN and "" are missing.

    Raises:
        BadRequest: its size isn't that of the shape, or a text isn't UTF-8.
    """
    if about.datatype == "BYTES":
        return from_values(about, _texts(about, data))
    dtype = NUMPY[about.datatype]
    if len(data) != about.count * dtype.itemsize:
        raise BadRequest(
            f"{shown(about.name)}: {len(data)} bytes; its shape says {about.count} x {dtype.itemsize}"
        )
    if about.datatype == "BOOL":
        return pa.array(np.frombuffer(data, np.uint8) != 0)
    values: NDArray = np.frombuffer(data, dtype)
    if about.datatype == "FP16":
        values = values.astype(np.float32)
    return pa.array(values, from_pandas=True)


def _texts(about: Tensor, data: bytes) -> list[bytes | None]:
    texts: list[bytes | None] = []
    at = 0
    for _ in range(about.count):
        if at + 4 > len(data):
            break
        end = at + 4 + struct.unpack_from("<I", data, at)[0]
        if end > len(data):
            break
        texts.append(data[at + 4 : end])
        at = end
    if len(texts) != about.count or at != len(data):
        raise BadRequest(f"{shown(about.name)}: its bytes aren't {about.count} texts, each after its length")
    return texts


def column(about: Tensor, values: pa.Array, is_list: bool, separator: str, limits: Limits) -> pa.Array:
    """The raw column that a tensor is: one value a row, or lists, without the missing values at their ends.

    Args:
        about: the tensor.
        values: its values, flat.
        is_list: what the column holds.
        separator: of lists that are text.
        limits: of lists.

    Raises:
        BadRequest: its shape isn't that of the column.
    """
    if not is_list:
        if about.width not in (None, 1):
            raise BadRequest(
                f"{shown(about.name)}: shape [{about.rows}, {about.width}]; the column holds one value a row"
            )
        return values
    if about.width is None:
        if about.datatype != "BYTES":
            raise BadRequest(
                f"{shown(about.name)}: shape [{about.rows}]; the column holds lists: send [rows, values], or text"
            )
        check_lists(about.name, about.rows, longest_list(values, separator), limits)
        return values
    given = values.is_valid().to_numpy(zero_copy_only=False).reshape(about.rows, about.width)
    # Of each row, one more than the place of the last value that isn't missing.
    lengths = ((np.arange(about.width) + 1) * given).max(1, initial=0)
    kept = (np.arange(about.width) < lengths[:, None]).ravel()
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, values.filter(pa.array(kept)))


def longest_list(column: pa.Array, separator: str) -> int:
    """Values in the longest list of a column of lists, or of text with a separator between values."""
    if pa.types.is_large_list(column.type):
        return pc.max(pc.list_value_length(column)).as_py() or 0
    return (pc.max(pc.count_substring(column, separator)).as_py() or 0) + 1


def num_missing(column: pa.Array) -> int:
    """Rows without a value, or with an empty list."""
    if pa.types.is_large_list(column.type):
        return int(pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0)
    return column.null_count


def strict_json(text: bytes) -> Any:
    """What JSON holds: no NaN, no key twice, integers of any size as they are.

    Raises:
        BadRequest: it isn't JSON in UTF-8.
    """
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise BadRequest(f"not UTF-8 at byte {error.start}; write the request as UTF-8") from None
    except BadRequest:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"not JSON: {error!s:.200}") from None


def _refuse(name: str) -> None:
    raise BadRequest(f"{name} is not JSON; send null for a missing value")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise BadRequest(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} comes twice")
    return content


def _place(about: Tensor, position: int) -> str:
    return f"{shown(about.name)}, row {position // (about.count // about.rows or 1)}"


def shown(value: object) -> str:
    """A value of a request as a message shows it: short, and one line."""
    text = ascii(value) if isinstance(value, str | bytes | int | float | bool | None) else _outline(value)
    return text if len(text) <= 80 else f"{text[:60]}..."


def _outline(value: object) -> str:
    if isinstance(value, list) and len(value) <= 4 and all(isinstance(each, int) for each in value):
        return str(value)
    return {"list": "an array", "dict": "an object"}.get(type(value).__name__, type(value).__name__)
