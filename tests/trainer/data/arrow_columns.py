"""A column of every Arrow type, in every kind of nesting, beside the plain Python values it was made of."""

from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from io import BytesIO
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 6
MASK = [False, True, False, False, False, False]  # of lists: the second is null
SIZES = [2, 0, 0, 1, 2, 1]
BITS = [0, 1, 1, 0, 1, 0]


class Leaf(NamedTuple):
    """A type that isn't nested; `roles` for which it is right, values that suit any of them, and odd ones."""

    type: pa.DataType
    roles: str
    good: list[Any]
    wild: list[Any]


class Column(NamedTuple):
    """A column, and its values: of the leaf, or lists of them."""

    name: str
    array: pa.Array
    values: list[Any]
    leaf: Leaf
    many: bool


def integers(kind: pa.DataType) -> Leaf:
    signed, width = "uint" not in str(kind), kind.bit_width
    low, high = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)
    return Leaf(kind, "number id value time", BITS, [low, None, 7, high, 0, 7])


def decimals(kind: pa.DataType) -> Leaf:
    wild = [Decimal("1.5"), None, Decimal("-2.25"), Decimal(0), Decimal("77.25"), Decimal("1.5")]
    return Leaf(kind, "number time", [Decimal(bit) for bit in BITS], wild)


def refused(kind: pa.DataType, value: Any) -> Leaf:
    return Leaf(kind, "", [value] * ROWS, [value, None] * 3)


INTEGERS = [f() for f in (pa.int8, pa.int16, pa.int32, pa.int64, pa.uint8, pa.uint16, pa.uint32, pa.uint64)]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
TEXTS = [pa.string(), pa.utf8(), pa.large_string(), pa.large_utf8(), pa.string_view(), pa.json_()]
DECIMALS = [pa.decimal32(6, 2), pa.decimal64(12, 3), pa.decimal128(38, 10), pa.decimal256(60, 5)]
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
SECONDS = [1_700_000_000, None, 0, -1, 253_402_300_799, 86_400]  # the fifth is of the year 9999
DATES = [0, None, 1, -1, 19_000, 2_932_896]


def timestamps(unit: str, zone: str | None) -> Leaf:
    times = [0 if time is None else time * UNITS[unit] for time in SECONDS]
    times[4] = times[4] if unit != "ns" else 9_000_000_000 * 10**9
    times[5] += UNITS[unit] - 1  # the last moment of that second
    times[3] = -1  # the last moment before 1970
    return Leaf(pa.timestamp(unit, zone), "time", times, [*times[:1], None, *times[2:]])


LEAVES = [
    *(integers(kind) for kind in INTEGERS),
    *(
        Leaf(kind, "number time", [float(bit) for bit in BITS], [1.5, None, -2.0, 0.25, 65504.0, 1.5])
        for kind in FLOATS
    ),
    *(decimals(kind) for kind in DECIMALS),
    *(Leaf(kind, "value text", [str(b) for b in BITS], ["7", None, "", "a, ä", "7", "x" * 20]) for kind in TEXTS),
    Leaf(pa.bool_(), "number value", [bool(bit) for bit in BITS], [True, None, False, True, None, False]),
    Leaf(pa.bool8(), "number id value time", BITS, [1, None, 0, 1, None, 0]),
    Leaf(pa.opaque(pa.int64(), "mine", "me"), "number id value time", BITS, [1, None, 0, 2**60, None, 0]),
    Leaf(pa.null(), "number id value time", [None] * ROWS, [None] * ROWS),
    *(timestamps(unit, zone) for unit in UNITS for zone in (None, "Europe/Berlin")),
    *(Leaf(kind, "time", [day or 0 for day in DATES], DATES) for kind in (pa.date32(), pa.date64())),
    *(refused(pa.time32(unit), 5) for unit in ("s", "ms")),
    *(refused(pa.time64(unit), 5) for unit in ("us", "ns")),
    *(refused(pa.duration(unit), 5) for unit in UNITS),
    refused(pa.month_day_nano_interval(), (1, 2, 3)),
    *(refused(f(), b"a") for f in (pa.binary, pa.large_binary, pa.binary_view)),
    refused(pa.binary(3), b"abc"),
    refused(pa.uuid(), b"0123456789abcdef"),
    refused(pa.struct([("a", pa.int64())]), {"a": 1}),
    refused(pa.struct([]), {}),
    refused(pa.map_(pa.string(), pa.int64()), [("a", 1)]),
    refused(pa.map_(pa.int64(), pa.int64()), [(1, 1)]),
    refused(pa.opaque(pa.binary(), "mine", "me"), b"a"),
    *(refused(f([pa.field("a", pa.int64())]), 1) for f in (pa.dense_union, pa.sparse_union)),
]  # fmt: skip

Nesting = Callable[[pa.Array, list[Any]], tuple[pa.Array, list[Any]]]


def array_of(kind: pa.DataType, values: list[Any]) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    if pa.types.is_date(kind):
        return pa.array(
            [None if v is None else date.fromordinal(date(1970, 1, 1).toordinal() + v) for v in values], kind
        )
    if pa.types.is_union(kind):
        types, offsets = pa.array([0] * ROWS, pa.int8()), pa.array(range(ROWS), pa.int32())
        child = pa.array([1] * ROWS, pa.int64())
        if kind.mode == "dense":
            return pa.UnionArray.from_dense(types, offsets, [child], ["a"])
        return pa.UnionArray.from_sparse(types, [child], ["a"])
    return pa.array(values, kind)


def dictionary(index: pa.DataType, with_null: bool = False) -> Nesting:
    """`with_null`: null is a value of the dictionary, besides."""

    def nest(array: pa.Array, values: list[Any]) -> tuple[pa.Array, list[Any]]:
        if with_null:
            order = [5, 1, 2, 3, 4, 0]
            encoded = pa.DictionaryArray.from_arrays(pa.array(order, index), array)
            return encoded, [values[at] for at in order]
        kept = [at for at in range(ROWS) if values[at] is not None]
        order = [None if value is None else kept.index(at) for at, value in enumerate(values)]
        return pa.DictionaryArray.from_arrays(pa.array(order, index), array.take(pa.array(kept))), values

    return nest


def runs(ends: pa.DataType) -> Nesting:
    def nest(array: pa.Array, values: list[Any]) -> tuple[pa.Array, list[Any]]:
        encoded = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3, 4, 5, 6, 9], ends), array)
        repeated = [values[0], values[0], *values[1:], values[5], values[5]]
        return encoded.slice(1, ROWS), repeated[1 : 1 + ROWS]

    return nest


def cut(values: list[Any], starts: list[int]) -> list[Any]:
    return [
        None if null else values[start : start + size]
        for start, size, null in zip(starts, SIZES, MASK, strict=True)
    ]


def lists(cls: Any, width: pa.DataType) -> Nesting:
    def nest(array: pa.Array, values: list[Any]) -> tuple[pa.Array, list[Any]]:
        offsets = pa.array([0, 2, 2, 2, 3, 5, 6], width)
        return cls.from_arrays(offsets, array, mask=pa.array(MASK)), cut(values, [0, 2, 2, 2, 3, 5])

    return nest


def views(cls: Any, width: pa.DataType) -> Nesting:
    def nest(array: pa.Array, values: list[Any]) -> tuple[pa.Array, list[Any]]:
        starts = [3, 0, 1, 0, 1, 5]  # in no order, and some overlap
        nested = cls.from_arrays(pa.array(starts, width), pa.array(SIZES, width), array, mask=pa.array(MASK))
        return nested, cut(values, starts)

    return nest


def fixed(size: int) -> Nesting:
    def nest(array: pa.Array, values: list[Any]) -> tuple[pa.Array, list[Any]]:
        order = [(3 * at) % ROWS for at in range(ROWS * size)]
        found = [[values[at] for at in order[size * row : size * row + size]] for row in range(ROWS)]
        array = pa.FixedSizeListArray.from_arrays(array.take(pa.array(order)), size, mask=pa.array(MASK))
        return array, [None if null else row for row, null in zip(found, MASK, strict=True)]

    return nest


def both(outer: Nesting, inner: Nesting) -> Nesting:
    return lambda array, values: outer(*inner(array, values))


LIST = lists(pa.ListArray, pa.int32())
SINGLE: dict[str, Nesting] = {
    "plain": lambda array, values: (array, values),
    **{f"dictionary_{kind}": dictionary(kind) for kind in (pa.int8(), pa.int64(), pa.uint32(), pa.uint64())},
    "dictionary_with_null": dictionary(pa.int8(), with_null=True),
    **{f"runs_{kind}": runs(kind) for kind in (pa.int16(), pa.int32(), pa.int64())},
    "runs_of_dictionary": both(runs(pa.int32()), dictionary(pa.int8())),
}
MANY: dict[str, Nesting] = {
    "list": LIST,
    "large_list": lists(pa.LargeListArray, pa.int64()),
    "list_view": views(pa.ListViewArray, pa.int32()),
    "large_list_view": views(pa.LargeListViewArray, pa.int64()),
    "fixed_size_list": fixed(2),
    "list_of_dictionary": both(LIST, dictionary(pa.int16())),
    "list_view_of_runs": both(views(pa.ListViewArray, pa.int32()), runs(pa.int32())),
    "dictionary_of_list": both(dictionary(pa.int8()), LIST),
    "tensor": lambda array, values: tensor(*fixed(2)(array, values)),
}
NEVER: dict[str, Nesting] = {
    "list_of_list": both(LIST, LIST),
    "no_values": lambda array, _: (pa.array([[]] * ROWS, pa.list_(array.type, 0)), [[]] * ROWS),
}


def tensor(array: pa.Array, values: list[Any]) -> tuple[pa.Array, list[Any]]:
    kind = pa.fixed_shape_tensor(array.type.value_type, (2,))
    return pa.ExtensionArray.from_storage(kind, array.cast(kind.storage_type)), values


def columns(wild: bool) -> Iterator[Column]:
    """Of every leaf and nesting that pyarrow can make; `roles` of the leaf are those of NEVER's, too."""
    for number, leaf in enumerate(LEAVES):
        for many, nestings in ((False, SINGLE), (True, MANY), (True, NEVER)):
            for nesting, nest in nestings.items():
                values = leaf.wild if wild else leaf.good
                try:
                    array, found = nest(array_of(leaf.type, values), values)
                except (pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowInvalid, NotImplementedError):
                    continue
                usable = leaf if nestings is not NEVER else leaf._replace(roles="")
                yield Column(f"c{number}_{nesting}", array, found, usable, many)


def parquet_can_hold(array: pa.Array) -> bool:
    if pa.types.is_fixed_size_list(array.type) and not array.type.list_size:
        return False  # pyarrow aborts the process
    try:
        sink = BytesIO()
        pq.write_table(pa.table({"a": array}), sink)
        kind = pq.read_table(sink)["a"].type
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return "duration" in str(kind) or "duration" not in str(array.type)  # a dictionary's become integers
