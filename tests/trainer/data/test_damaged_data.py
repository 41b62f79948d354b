"""Datasets damaged in random ways: the reader gives what a plain loop finds in the files, or says one line."""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.trainer.data.dataset import BadRowPolicy, Dataset, load_schema
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.errors import UserError
from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, make_table
from tests.trainer.data.test_reader import contents

SCHEMA = make_schema(weight=True)
TABLE = make_table(SCHEMA, 60)
COLUMNS = [SCHEMA.label, "weight", *(feature.name for feature in SCHEMA.features)]
FILES = ("part-0.parquet", "part-1.parquet")
Row = tuple[Any, ...]


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


@contextmanager
def dataset() -> Iterator[Path]:
    """Two files of 30 rows, in row groups of 20 and 10, with checksums as `cetnet prepare` writes them."""
    with TemporaryDirectory() as directory:
        path = Path(directory)
        save_yaml(path / "schema.yaml", SCHEMA)
        (path / "train").mkdir()
        for index, file in enumerate(FILES):
            write(path / "train" / file, TABLE.slice(30 * index, 30))
        yield path


def write(file: Path, table: pa.Table) -> None:
    pq.write_table(table, file, row_group_size=20, write_page_checksum=True, compression="zstd")


def rows_or_line(path: Path, bad_rows: BadRowPolicy = "fail") -> list[Row] | str:
    """All rows of the split, through the reader, or what the user is told."""
    try:
        reader = Reader(Dataset(path, "train", bad_rows), 16, order="sequential")
        return [row for batch in reader.batches(0) for row in contents(batch) if row[0] >= 0]
    except UserError as error:
        (line,) = str(error).splitlines()
        return line


def plain_rows(path: Path) -> tuple[list[Row], list[int]]:
    """Good rows, and the numbers of the bad ones: one row after the other."""
    schema = load_schema(path)
    good, bad = [], []
    rows = [row for file in sorted(path.glob("train/*")) for row in pq.read_table(file).to_pylist()]
    for number, row in enumerate(rows):
        label, weight, *dense = (
            float32(row[name])
            for name in (schema.label, schema.weight, *(feature.name for feature in schema.dense_features))
        )
        ids = [
            [row[feature.name]] if feature.kind == "categorical" else row[feature.name]
            for feature in schema.id_features
        ]
        usable = label in (0, 1) and 0 <= weight < math.inf and all(map(math.isfinite, dense))
        for feature, values in zip(schema.id_features, ids, strict=True):
            usable = usable and values is not None and len(values) <= (feature.max_length or 1000)
            usable = usable and all(
                value is not None and 0 <= value < schema.tables[str(feature.table)] for value in values
            )
        if usable:
            good.append((number, label, weight, tuple(dense), *ids))
        else:
            bad.append(number)
    return good, bad


def float32(value: Any) -> float:
    with np.errstate(over="ignore"):
        return math.nan if value is None else float(np.float32(value))


def values_of(name: str) -> st.SearchStrategy[Any]:
    if name not in {feature.name for feature in SCHEMA.id_features}:
        return st.sampled_from([0, 1, 2, -1, None, *([math.nan, math.inf, 1e-40] if name != "click" else [])])
    (feature,) = (feature for feature in SCHEMA.features if feature.name == name)
    rows = SCHEMA.tables[str(feature.table)]
    ids = st.sampled_from([0, rows - 1, rows, -1, 2**62, -(2**63), None])
    if feature.kind == "categorical":
        return ids
    return st.none() | st.lists(ids, max_size=2) | st.sampled_from([[0] * 4, [0] * 6, [0] * 7])


changes = st.sampled_from(COLUMNS).flatmap(
    lambda name: st.tuples(st.integers(0, 29), st.just(name), values_of(name))
)


def edited(table: pa.Table, row: int, name: str, value: Any) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))


@fuzz(40)
@given(st.lists(changes, min_size=1, max_size=4), st.sampled_from(FILES))
def test_bad_values(values: list[tuple[int, str, Any]], name: str) -> None:
    with dataset() as path:
        file = path / "train" / name
        table = pq.read_table(file)
        for change in values:
            table = edited(table, *change)
        write(file, table)
        good, bad = plain_rows(path)
        assert rows_or_line(path, "quarantine") == good
        told = rows_or_line(path)
        if bad:
            place = f"{file}, row group {bad[0] % 30 // 20}, row {bad[0] % 30} (of the file, from 0)"
            assert str(told).startswith(place)
        else:
            assert told == good


TYPES = [
    pa.int8(),
    pa.uint64(),
    pa.float16(),
    pa.float64(),
    pa.bool_(),
    pa.string(),
    pa.string_view(),
    pa.binary(),
    pa.decimal128(20, 3),
    pa.timestamp("us"),
    pa.duration("s"),
    pa.date32(),
    pa.null(),
    pa.dictionary(pa.int8(), pa.int64()),
    pa.struct([("a", pa.int64())]),
    pa.list_(pa.int64()),
    pa.list_(pa.uint64()),
    pa.list_(pa.float32()),
    pa.list_(pa.list_(pa.int64())),
    pa.list_(pa.field("item", pa.int64(), nullable=False)),
    pa.list_(pa.int64(), 1),
    pa.list_(pa.dictionary(pa.int8(), pa.int64())),
    pa.large_list(pa.int32()),
    pa.list_view(pa.int64()),
    pa.map_(pa.int64(), pa.int64()),
]


def of_type(value: Any, kind: pa.DataType) -> Any:
    """A value in the form that a column of this type wants, as far as that exists."""
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return str(value)
    if pa.types.is_binary(kind):
        return str(value).encode()
    if pa.types.is_struct(kind):
        return {"a": 1}
    if pa.types.is_null(kind):
        return None
    if pa.types.is_map(kind):
        return [(1, 2)]
    if pa.types.is_nested(kind):
        values = value if isinstance(value, list) else [int(value)]
        if pa.types.is_fixed_size_list(kind):
            return [*values, 0][:1]
        return [of_type(one, kind.value_type) for one in values]
    if isinstance(value, list):
        value = len(value)
    return (
        bool(value) if pa.types.is_boolean(kind) else value if pa.types.is_floating(kind) else abs(int(value))
    )


@fuzz(60)
@given(
    st.sampled_from(COLUMNS),
    st.sampled_from(TYPES),
    st.sampled_from([FILES[:1], FILES[1:], FILES]),
    st.sampled_from([None, 2**63 + 5]),
)
def test_other_types(name: str, kind: pa.DataType, files: tuple[str, ...], value: int | None) -> None:
    with dataset() as path:
        for file in files:
            table = pq.read_table(path / "train" / file)
            values = [of_type(old, kind) for old in table[name].to_pylist()]
            if value is not None and kind == pa.uint64():
                values[3] = value
            column = pa.array(values, kind)
            write(path / "train" / file, table.set_column(table.column_names.index(name), name, column))
        told = rows_or_line(path)
        if isinstance(told, str):
            assert any(str(path / "train" / file) in told for file in FILES)
            assert f"column {name!r}" in told
        else:
            assert (told, []) == plain_rows(path)


def reordered(file: Path, _: int) -> None:
    table = pq.read_table(file)
    write(file, table.select(table.column_names[::-1]))


def without_nulls(file: Path, _: int) -> None:
    table = pq.read_table(file)
    write(file, table.cast(pa.schema([field.with_nullable(False) for field in table.schema])))


def without_column(file: Path, number: int) -> None:
    write(file, pq.read_table(file).drop_columns(COLUMNS[number % len(COLUMNS)]))


def with_a_column_twice(file: Path, number: int) -> None:
    table, name = pq.read_table(file), COLUMNS[number % len(COLUMNS)]
    write(file, table.append_column(name, table[name]))


def renamed(file: Path, number: int) -> None:
    table, name = pq.read_table(file), COLUMNS[number % len(COLUMNS)]
    write(file, table.rename_columns({name: f"{name}\n2"}))


def no_rows(file: Path, _: int) -> None:
    write(file, pq.read_table(file).slice(0, 0))


def no_row_groups(file: Path, _: int) -> None:
    pq.ParquetWriter(file, TABLE.schema).close()


def truncated(file: Path, number: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: number % len(content)])


def beheaded(file: Path, number: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[number % len(content) + 1 :])


def other_bytes(file: Path, number: int) -> None:
    file.write_bytes(np.random.default_rng(number).bytes(number))


def a_directory(file: Path, _: int) -> None:
    file.unlink()
    file.mkdir()


def with_other_encodings(file: Path, _: int) -> None:
    pq.write_table(
        pq.read_table(file),
        file,
        use_dictionary=False,
        column_encoding={"user": "DELTA_BINARY_PACKED", "price": "BYTE_STREAM_SPLIT"},
        data_page_version="2.0",
        compression="gzip",
        row_group_size=7,
    )


HARMLESS = (reordered, without_nulls, no_rows, no_row_groups, with_other_encodings)
HARMFUL = (without_column, with_a_column_twice, renamed, truncated, beheaded, other_bytes, a_directory)


@fuzz(60)
@given(st.sampled_from(HARMLESS + HARMFUL), st.sampled_from(FILES), st.integers(0, 10_000))
def test_damaged_files(damage: Callable[[Path, int], None], name: str, number: int) -> None:
    with dataset() as path:
        file = path / "train" / name
        damage(file, number)
        told = rows_or_line(path)
        if damage in HARMLESS:
            assert (told, []) == plain_rows(path)
        else:
            assert isinstance(told, str)
            assert told.startswith(f"{file}")


@fuzz(90)
@given(st.sampled_from(FILES), st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit(name: str, position: int, bit: int) -> None:
    with dataset() as path:
        file = path / "train" / name
        content = bytearray(file.read_bytes())
        content[position % len(content)] ^= 1 << bit
        before = plain_rows(path)
        file.write_bytes(content)
        told = rows_or_line(path)
        assert isinstance(told, str) or (told, []) == before


@fuzz(60)
@given(st.data())
def test_a_damaged_schema(data: st.DataObject) -> None:
    with dataset() as path:
        file = path / "schema.yaml"
        text = file.read_text()
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 30)))
        new = data.draw(
            st.text("\n -:{}[]&*!#|>%@`'\"0129abcx", max_size=4)
            | st.sampled_from(
                ["2001-99-99", "&a [*a]", "!!python/none", "\x00", "\n? {a: b}\n", "1e999", "~"]
            )
        )
        file.write_text(text[:start] + new + text[stop:])
        told = rows_or_line(path)
        if isinstance(told, str):
            assert told.startswith(str(path))
        else:
            assert (told, []) == plain_rows(path)


@pytest.mark.parametrize("how", ["touched", "replaced", "removed", "truncated"])
def test_a_file_that_changes_while_it_is_read(how: str) -> None:
    with dataset() as path:
        opened = Dataset(path, "train")
        file = path / "train" / FILES[1]
        if how == "touched":
            shutil.copystat(path / "schema.yaml", file)
        elif how == "replaced":
            write(file.with_suffix(".new"), edited(pq.read_table(file), 1, "user", 1))
            file.with_suffix(".new").rename(file)
        elif how == "removed":
            file.unlink()
        else:
            truncated(file, 2000)
        what = "is no more" if how == "removed" else "was changed since the run began"
        with pytest.raises(UserError, match=rf"part-1.parquet: .*{what}"):
            list(Reader(opened, 16, order="sequential").batches(0))
