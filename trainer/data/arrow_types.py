"""Which Arrow types a column may have, for what it is used as, and the one plain form that readers go on with.

One list for raw files and for prepared ones: raw columns may be text besides, which `cetnet prepare` reads.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cetnet.models.schema import Schema
from cetnet.trainer.errors import UserError

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


def prepared_uses(schema: Schema) -> list[tuple[str, Use]]:
    """What the columns of a dataset that is read directly are for, features last; one may have several uses."""
    numbers = [schema.label, schema.weight, schema.true_probability, *(f.name for f in schema.dense_features)]
    uses = [(name, Use("number")) for name in numbers if name]
    uses += [(schema.group, Use("id"))] if schema.group else []
    hashed = schema.hashed_features
    for feature in schema.id_features:
        role: Role = "value" if feature in hashed else "id"
        uses.append((feature.name, Use(role, feature.kind != "categorical")))
    return uses


def check_columns(
    file: Path,
    columns: pa.Schema,
    uses: Iterable[tuple[str, Use]],
    schema: str,
    keys: Container[str] = (),
) -> None:
    """Raise UserError, with file, column and type, for a column that is missing, there twice or of a wrong type.

    Args:
        file: the Parquet file.
        columns: what it says it has.
        uses: of the columns wanted.
        schema: who wants them, in words.
        keys: of the directories that the file is in: columns of text.
    """
    for name, use in uses:
        count = columns.names.count(name)
        if name in keys:
            kind, use = pa.string(), use if use.many else use._replace(text=True)
        elif count == 1:
            kind = columns.field(name).type
        else:
            has = f"{count} columns" if count else "no column"
            similar = [
                other for other in columns.names if other.strip().casefold() == name.strip().casefold()
            ]
            hint = f"; is it {similar[0]!r}?" if similar and not count else ""
            raise UserError(f"{file}: {has} {name!r}, which {schema} names; columns: {columns.names}{hint}")
        if not is_accepted(kind, use):
            singular, plural = _WORDS[use.role]
            wants = f"a list of {plural}" if use.many else singular
            raise UserError(
                f"{file}: column {name!r} is {kind}, but {schema} wants {wants}: {_remedy(kind, use)}"
            )


def check_one_sign(columns: Mapping[Path, pa.Schema], name: str) -> None:
    """Raise UserError if a column of integers is uint64 in one file and not in another: no type holds both."""
    first, expected = None, None
    for file, of_file in columns.items():
        kind = value_type(of_file.field(name).type)
        if pa.types.is_null(kind):
            continue
        if first is None:
            first, expected = file, kind
        if pa.types.is_uint64(kind) != pa.types.is_uint64(expected):
            raise UserError(
                f"{file}: column {name!r} is {kind}, but {expected} in {first.name}; write all files alike"
            )


def key_column(file: Path, name: str, value: str | None, use: Use, rows: int) -> pa.Array:
    """The column that a directory `name=value` gives a file: `rows` times the value, as a dictionary.

    Raises UserError for text that isn't the number wanted.
    """
    kind = {"number": pa.float64(), "id": pa.int64()}.get(use.role, pa.string())
    try:
        dictionary = pa.array([value], pa.string()).cast(kind)
    except pa.ArrowInvalid:
        raise UserError(
            f"{file}: its directory {name}={value} should name {_WORDS[use.role][0]}, as schema.yaml wants: rename it"
        ) from None
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int8), dictionary)


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves: of a dictionary, of runs, of what an extension is stored as."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def plain(column: pa.ChunkedArray, use: Use) -> pa.ChunkedArray:
    """A column of an accepted type in plain form: the same values, in one of a few types.

    Numbers, ids and values are integers of any width, booleans, float32, float64, string or large_string; directly
    read values may be a dictionary of these; times are integers or text; lists are list or large_list of these. Of
    the type null come nulls of a plain type.
    """
    if _is_plain(column.type, use):
        return column
    return pa.chunked_array(
        [_plain_array(chunk, use) for chunk in column.chunks], _plain_type(column.type, use)
    )


def plain_table(table: pa.Table, uses: Mapping[str, Use]) -> pa.Table:
    """The table with the columns that have a use in plain form."""
    for name, use in uses.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, plain(table[name], use))
    return table


def not_plain(columns: pa.Schema, uses: Iterable[tuple[str, Use]]) -> set[str]:
    """The columns that are not in plain form for each of their uses."""
    return {
        name for name, use in uses if name in columns.names and not _is_plain(columns.field(name).type, use)
    }


def alike(tables: list[pa.Table], schema: Schema) -> list[pa.Table]:
    """Plain tables with one type a column, if need be: numbers float32, ids int64.

    An id beyond int64 becomes a negative one, which is no id either.
    """
    if all(table.schema.equals(tables[0].schema) for table in tables[1:]):
        return tables
    uses = dict(prepared_uses(schema))
    types = [[field.type for field in table.schema] for table in tables]
    for index, name in enumerate(tables[0].column_names):
        if len({of_table[index] for of_table in types}) > 1:
            use = uses[name]
            kind = pa.float32() if use.role == "number" else pa.int64()
            kind = pa.large_list(kind) if use.many else kind
            tables = [
                table.set_column(index, name, table.column(index).cast(kind, safe=False)) for table in tables
            ]
    return tables


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


def _remedy(kind: pa.DataType, use: Use) -> str:
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


def _is_plain(kind: pa.DataType, use: Use) -> bool:
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
