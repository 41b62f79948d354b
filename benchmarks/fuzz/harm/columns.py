"""Harm done to tables: columns of other types, nulls, odd values, names."""

import datetime
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa

_ODD: list[Any] = [None, -1, 0, 1, 2**31, 2**62, float("nan"), float("inf"), 1e39, "", "x", True]
_TYPES: list[pa.DataType] = [
    *(
        pa.int8(),
        pa.int16(),
        pa.int32(),
        pa.int64(),
        pa.uint8(),
        pa.uint32(),
        pa.uint64(),
        pa.float16(),
        pa.float32(),
    ),
    *(pa.float64(), pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.bool_(), pa.null()),
    *(
        pa.decimal128(20, 2),
        pa.date32(),
        pa.timestamp("ns"),
        pa.timestamp("s", "Europe/Berlin"),
        pa.time64("us"),
    ),
    *(
        pa.duration("s"),
        pa.dictionary(pa.int8(), pa.string()),
        pa.list_(pa.int64()),
        pa.large_list(pa.string()),
    ),
    *(
        pa.list_(pa.int32(), 2),
        pa.list_(pa.null()),
        pa.struct({"a": pa.int64()}),
        pa.map_(pa.string(), pa.int64()),
    ),
    *(
        pa.list_(pa.list_(pa.int64())),
        pa.dictionary(pa.int32(), pa.int64()),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ),
]
_EXAMPLES: list[tuple[Callable[[pa.DataType], bool], Callable[[random.Random], Any]]] = [
    (pa.types.is_boolean, lambda rng: rng.random() < 0.5),
    (pa.types.is_integer, lambda rng: rng.randrange(2)),
    (pa.types.is_floating, lambda rng: float(rng.randrange(2))),
    (pa.types.is_binary, lambda rng: rng.choice([b"1", b"\xff"])),
    (pa.types.is_decimal, lambda rng: Decimal(rng.randrange(2))),
    (pa.types.is_date, lambda rng: datetime.date(2024, 1, 1 + rng.randrange(9))),
    (pa.types.is_timestamp, lambda rng: datetime.datetime(2024, 1, 1 + rng.randrange(9))),
    (pa.types.is_time, lambda rng: datetime.time(rng.randrange(24))),
    (pa.types.is_duration, lambda rng: datetime.timedelta(seconds=rng.randrange(9))),
    (pa.types.is_struct, lambda rng: {"a": rng.randrange(9)}),
    (pa.types.is_map, lambda rng: [("a", rng.randrange(9))]),
    (pa.types.is_null, lambda _rng: None),
]


def harm_columns(rng: random.Random, columns: pa.Table) -> tuple[pa.Table, str]:
    """A table with one thing changed, and what it was."""
    if not columns.num_columns:
        return columns, "nothing is left"
    place = rng.randrange(columns.num_columns)
    name = columns.column_names[place]
    match rng.choice(
        [
            "type",
            "type",
            "type",
            "cast",
            "nulls",
            "values",
            "values",
            "drop",
            "rename",
            "twice",
            "rows",
            "more",
        ]
    ):
        case "type":
            kind = rng.choice(_TYPES)
            return columns.set_column(place, name, of_type(rng, kind, columns.num_rows)), f"{name} is {kind}"
        case "cast":
            kind = rng.choice(_TYPES)
            try:
                return columns.set_column(place, name, columns[name].cast(kind)), f"{name} cast to {kind}"
            except pa.ArrowException:
                return columns.slice(0, 0), "no rows"
        case "nulls":
            keep = pa.array(
                [rng.random() > rng.choice([0.02, 0.3, 1.1]) for _ in range(columns.num_rows)], pa.bool_()
            )
            values = [
                v if k else None for v, k in zip(columns[name].to_pylist(), keep.to_pylist(), strict=True)
            ]
            return columns.set_column(place, name, pa.array(values, columns[name].type)), f"nulls in {name}"
        case "values":
            return _odd_values(rng, columns, place)
        case "drop":
            return columns.remove_column(place), f"no column {name}"
        case "rename":
            names = list(columns.column_names)
            names[place] = rng.choice(
                ["", "x", name.upper(), f" {name}", "a.b", "é", "_split", "user_group", "__index_level_0__"]
            )
            return columns.rename_columns(names), f"{name} renamed to {names[place]!r}"
        case "twice":
            return columns.append_column(name, columns[name]), f"{name} twice"
        case "rows":
            count = rng.choice([0, 1, 2])
            return columns.slice(0, count), f"{count} rows"
    extra = rng.choice(["row", "user_group", "ts_timestamp", "_group", "index", "note2", "split"])
    return columns.append_column(
        extra, of_type(rng, rng.choice(_TYPES), columns.num_rows)
    ), f"another column {extra}"


def of_type(rng: random.Random, kind: pa.DataType, count: int) -> pa.Array:
    """Values of a type, some of them null."""
    return pa.array([None if rng.random() < 0.05 else _example(rng, kind) for _ in range(count)], kind)


def _example(rng: random.Random, kind: pa.DataType) -> Any:
    if pa.types.is_dictionary(kind):
        return _example(rng, kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return [_example(rng, kind.value_type) for _ in range(kind.list_size)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_example(rng, kind.value_type) for _ in range(rng.randrange(4))]
    return next((make(rng) for test, make in _EXAMPLES if test(kind)), str(rng.randrange(9)))


def _odd_values(rng: random.Random, columns: pa.Table, place: int) -> tuple[pa.Table, str]:
    """Some values replaced by odd ones that fit the type."""
    name, kind = columns.column_names[place], columns.schema.field(place).type
    values = columns[name].to_pylist()
    if not values:
        return columns, "nothing"
    odd = rng.choice(_ODD)
    for _ in range(rng.choice([1, 1, 5])):
        row = rng.randrange(len(values))
        values[row] = [odd] * rng.choice([1, 1, 2000]) if isinstance(values[row], list) else odd
    try:
        return columns.set_column(place, name, pa.array(values, kind)), f"{odd!r} in {name}"
    except (pa.ArrowException, TypeError, OverflowError, ValueError):
        return columns.remove_column(place), f"no column {name}"


def writer_options(rng: random.Random) -> dict[str, Any]:
    """How Parquet is written."""
    return {
        "compression": rng.choice(["snappy", "zstd", "none", "gzip", "brotli", "lz4"]),
        "use_dictionary": rng.random() < 0.5,
        "data_page_version": rng.choice(["1.0", "2.0"]),
        "version": rng.choice(["1.0", "2.4", "2.6"]),
        "write_page_checksum": rng.random() < 0.3,
    }
