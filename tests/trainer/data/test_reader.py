"""The reader against a slow one: row by row, with pyarrow, by row number."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.models.batch import Batch
from cetnet.models.schema import Feature, Schema
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Order, Reader
from cetnet.trainer.errors import UserError
from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, make_table, write_split

WORLD_SIZES = (1, 2, 4)
ORDERS: tuple[Order, ...] = ("shuffled", "sequential", "partitioned")
KEYS = [feature.name for feature in make_schema().id_features]
Layout = list[list[int]]

# Sizes of the row groups of each file; empty row groups and empty files too.
layouts = st.lists(st.lists(st.integers(0, 40), max_size=5), min_size=1, max_size=3).filter(
    lambda layout: sum(map(sum, layout)) > 0
)


@dataclass(frozen=True)
class Settings:
    batch_size: int
    lanes: int
    shuffle_rows: int
    seed: int
    prefetch: int
    threads: int

    def reader(self, dataset: Dataset, order: Order, rank: int = 0, world_size: int = 1) -> Reader:
        return Reader(dataset, order=order, rank=rank, world_size=world_size, **vars(self))


@st.composite
def reader_settings(draw: st.DrawFn) -> Settings:
    lanes = draw(st.sampled_from([4, 8, 12]))
    return Settings(
        batch_size=lanes * draw(st.integers(1, 5)),
        lanes=lanes,
        shuffle_rows=draw(st.integers(1, 100)),
        seed=draw(st.integers(0, 3)),
        prefetch=draw(st.integers(0, 3)),
        threads=draw(st.integers(1, 3)),
    )


@contextmanager
def disk_errors(schema: Schema, table: pa.Table, layout: Layout) -> Iterator[tuple[Path, Dataset]]:
    with TemporaryDirectory() as directory:
        save_yaml(Path(directory) / "schema.yaml", schema)
        write_split(Path(directory) / "train", table, layout)
        yield Path(directory), Dataset(Path(directory), "train")


@contextmanager
def random_dataset(layout: Layout, weight: bool = False) -> Iterator[tuple[Path, Dataset]]:
    schema = make_schema(weight)
    with disk_errors(schema, make_table(schema, sum(map(sum, layout))), layout) as opened:
        yield opened


def rows_of(batch: Batch) -> list[int]:
    return [row for row in batch.row.tolist() if row >= 0]


def global_batches(dataset: Dataset, config: Settings, order: Order, world_size: int) -> list[list[int]]:
    """Row numbers of each step, rank after rank."""
    ranks = [
        [rows_of(batch) for batch in config.reader(dataset, order, rank, world_size).batches(epoch=1)]
        for rank in range(world_size)
    ]
    return [[row for rows in step for row in rows] for step in zip(*ranks, strict=True)]


@settings(max_examples=40, deadline=None)
@given(layouts, reader_settings(), st.sampled_from(ORDERS), st.sampled_from(WORLD_SIZES))
def test_every_row_once_and_padding_only_at_the_end(
    layout: Layout, config: Settings, order: Order, world_size: int
) -> None:
    with random_dataset(layout, weight=True) as (_, dataset):
        seen: list[int] = []
        for rank in range(world_size):
            reader = config.reader(dataset, order, rank, world_size)
            batches = list(reader.batches(epoch=0))
            assert len(batches) == reader.steps_per_epoch
            for step, batch in enumerate(batches):
                rows = rows_of(batch)
                padding = config.batch_size // world_size - len(rows)
                assert padding == 0 or step == len(batches) - 1
                assert batch.row.tolist() == rows + [-1] * padding
                assert batch.weight[len(rows) :].tolist() == [0.0] * padding
                seen += rows
        assert sorted(seen) == list(range(sum(map(sum, layout))))


@settings(max_examples=25, deadline=None)
@given(layouts, reader_settings(), st.sampled_from(["shuffled", "sequential"]))
def test_a_step_has_the_same_rows_on_every_world_size(layout: Layout, config: Settings, order: Order) -> None:
    with random_dataset(layout) as (_, dataset):
        steps = [
            list(map(Counter, global_batches(dataset, config, order, world_size)))
            for world_size in WORLD_SIZES
        ]
        assert steps[0] == steps[1] == steps[2]


@settings(max_examples=40, deadline=None)
@given(layouts, reader_settings(), st.sampled_from(WORLD_SIZES))
def test_sequential_order_is_the_order_of_the_files(
    layout: Layout, config: Settings, world_size: int
) -> None:
    with random_dataset(layout) as (_, dataset):
        steps = global_batches(dataset, config, "sequential", world_size)
        assert [row for step in steps for row in step] == list(range(dataset.num_rows))
        assert all(len(step) == config.batch_size for step in steps[:-1])


@settings(max_examples=40, deadline=None)
@given(layouts, reader_settings(), st.sampled_from(WORLD_SIZES))
def test_partitioned_order_gives_each_rank_one_part(
    layout: Layout, config: Settings, world_size: int
) -> None:
    with random_dataset(layout) as (_, dataset):
        parts = [
            [
                row
                for batch in config.reader(dataset, "partitioned", rank, world_size).batches(0)
                for row in rows_of(batch)
            ]
            for rank in range(world_size)
        ]
        assert [row for part in parts for row in part] == list(range(dataset.num_rows))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=40, deadline=None)
@given(layouts, reader_settings(), st.sampled_from(ORDERS), st.sampled_from(WORLD_SIZES), st.data())
def test_starting_at_a_step_equals_skipping(
    layout: Layout, config: Settings, order: Order, world_size: int, data: st.DataObject
) -> None:
    with random_dataset(layout) as (_, dataset):
        reader = config.reader(dataset, order, data.draw(st.integers(0, world_size - 1)), world_size)
        start = data.draw(st.integers(0, reader.steps_per_epoch))
        stop = data.draw(st.integers(start, reader.steps_per_epoch))
        whole, part = list(reader.batches(2)), list(reader.batches(2, start, stop))
        assert len(part) == stop - start
        for expected, batch in zip(whole[start:stop], part, strict=True):
            assert contents(batch) == contents(expected)


def test_seed_and_epoch_fix_the_shuffled_order() -> None:
    def order_of(seed: int, epoch: int) -> list[int]:
        reader = Reader(dataset, 32, lanes=4, shuffle_rows=50, seed=seed)
        return [row for batch in reader.batches(epoch) for row in rows_of(batch)]

    with random_dataset([[40, 40, 40], [30, 50]]) as (_, dataset):
        orders = {(seed, epoch): order_of(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
        assert orders[0, 1] == order_of(0, 1)
        assert len(set(map(tuple, orders.values()))) == 4
        assert all(order != sorted(order) for order in orders.values())


def test_seed_and_epoch_fix_the_order_of_the_row_groups() -> None:
    def order_of(seed: int, epoch: int) -> tuple[int, ...]:
        reader = Reader(dataset, 10, lanes=1, shuffle_rows=1, seed=seed)
        return tuple(rows_of(batch)[0] // 10 for batch in reader.batches(epoch))

    with random_dataset([[10] * 4, [10] * 4]) as (_, dataset):
        orders = [order_of(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
        assert all(sorted(order) == list(range(8)) for order in orders)
        assert len(set(orders)) == 4


def test_rows_of_a_chunk_are_mixed_and_chunks_stay_within_shuffle_rows() -> None:
    with random_dataset([[50] * 8]) as (_, dataset):
        order = [
            row for batch in Reader(dataset, 4, lanes=4, shuffle_rows=1).batches(0) for row in rows_of(batch)
        ]
        lanes = [order[lane::4] for lane in range(4)]
        for lane in lanes:
            for half in (lane[:50], lane[50:]):
                assert len({row // 50 for row in half}) == 1  # one row group after the other
                assert half != sorted(half)
        order = [
            row
            for batch in Reader(dataset, 4, lanes=4, shuffle_rows=100).batches(0)
            for row in rows_of(batch)
        ]
        assert all(len({row // 50 for row in order[lane::4][:50]}) == 2 for lane in range(4))


def contents(batch: Batch) -> list[tuple[Any, ...]]:
    """One tuple per row: number, label, weight, dense, ids per key."""
    keys = batch.sparse.keys()
    ids = [[values.tolist() for values in batch.sparse[key].to_dense()] for key in keys]
    dense = map(tuple, batch.dense.tolist())
    return list(
        zip(batch.row.tolist(), batch.label.tolist(), batch.weight.tolist(), dense, *ids, strict=True)
    )


def slow_contents(path: Path, schema: Schema) -> list[tuple[Any, ...]]:
    """The same of every row of the files, read row by row."""
    rows: list[dict[str, Any]] = []
    for file in sorted(path.glob("train/*.parquet")):
        rows += pq.read_table(file).to_pylist()

    def ids(row: dict[str, Any], feature: Feature) -> list[int]:
        return [row[feature.name]] if feature.kind == "categorical" else row[feature.name]

    return [
        (
            number,
            row[schema.label],
            row[schema.weight] if schema.weight else 1,
            tuple(row[feature.name] for feature in schema.dense_features),
            *(ids(row, feature) for feature in schema.id_features),
        )
        for number, row in enumerate(rows)
    ]


def padded(rows: list[tuple[Any, ...]], size: int, schema: Schema) -> list[tuple[Any, ...]]:
    """Rows followed by padding: the same rows again without number and weight, or zeros if there are none."""
    zeros = [[0] if feature.kind == "categorical" else [] for feature in schema.id_features]
    source = rows or [(-1, 0, 0, (0,) * len(schema.dense_features), *zeros)]
    padding = [source[i % len(source)] for i in range(size - len(rows))]
    return rows + [(-1, label, 0, *rest) for _, label, _, *rest in padding]


def assert_equals_the_files(reader: Reader, path: Path) -> None:
    expected = slow_contents(path, reader.dataset.schema)
    for batch in reader.batches(epoch=0):
        rows = [expected[row] for row in rows_of(batch)]
        assert contents(batch) == padded(rows, len(batch.row), reader.dataset.schema)


@settings(max_examples=40, deadline=None)
@given(layouts, reader_settings(), st.sampled_from(ORDERS), st.sampled_from(WORLD_SIZES), st.booleans())
def test_batches_hold_what_the_files_hold(
    layout: Layout, config: Settings, order: Order, world_size: int, weight: bool
) -> None:
    with random_dataset(layout, weight) as (path, dataset):
        for rank in range(world_size):
            assert_equals_the_files(config.reader(dataset, order, rank, world_size), path)


def test_keys_and_types_of_a_batch() -> None:
    with random_dataset([[10]]) as (_, dataset):
        batch = next(Reader(dataset, 4, lanes=4).batches(epoch=0))
        assert batch.sparse.keys() == KEYS
        assert (batch.sparse.values().dtype, batch.sparse.lengths().dtype) == (torch.int64, torch.int32)
        assert {tensor.dtype for tensor in (batch.dense, batch.label, batch.weight)} == {torch.float32}
        assert batch.row.dtype == torch.int64


@pytest.mark.parametrize("order", ORDERS)
def test_other_column_types(order: Order) -> None:
    schema = make_schema(weight=True)
    table = make_table(schema, 100)
    types = {
        "click": pa.bool_(),
        "weight": pa.int64(),
        "user": pa.uint8(),
        "item": pa.int16(),
        "tags": pa.large_list(pa.int32()),
        "history": pa.list_(pa.uint64()),
        "price": pa.float64(),
    }
    for name, kind in types.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    big = pa.array([20_000_000 + 2 * row for row in range(100)])  # integers beyond 2^24
    table = table.set_column(table.column_names.index("age"), "age", big)
    with disk_errors(schema, table, [[30, 30], [40]]) as (path, dataset):
        assert_equals_the_files(Reader(dataset, 16, order=order, lanes=4, shuffle_rows=20), path)


def test_a_schema_without_dense_features() -> None:
    schema = make_schema()
    schema = schema.model_copy(update={"features": tuple(schema.id_features)})
    with disk_errors(schema, make_table(schema, 10), [[10]]) as (_, dataset):
        (batch,) = Reader(dataset, 12, lanes=4).batches(epoch=0)
        assert batch.dense.shape == (12, 0)


@pytest.mark.parametrize("names", [["tags", "history"], ["user", "tags", "item", "history", "queries"]])
def test_categorical_features_between_others_or_none(names: list[str]) -> None:
    schema = make_schema()
    features = {feature.name: feature for feature in schema.features}
    chosen = tuple(features[name] for name in names)
    tables = {str(feature.table): schema.tables[str(feature.table)] for feature in chosen}
    schema = schema.model_copy(update={"features": chosen, "tables": tables})
    with disk_errors(schema, make_table(schema, 30), [[20, 10]]) as (path, dataset):
        assert_equals_the_files(Reader(dataset, 16, lanes=4), path)


def test_threads_end_when_the_consumer_stops_early() -> None:
    before = threading.active_count()
    with random_dataset([[40] * 5]) as (_, dataset):
        batches = Reader(dataset, 8, lanes=4).batches(epoch=0)
        next(batches)
        batches.close()
        assert threading.active_count() == before


@pytest.mark.parametrize(
    ("batch_size", "lanes", "world_size", "message"),
    [
        (12, 4, 3, "data.lanes=4 is not a multiple of the 3 processes"),
        (10, 4, 2, "data.batch_size=10 is not a multiple of data.lanes=4; set data.batch_size=8"),
    ],
)
def test_sizes_must_divide(batch_size: int, lanes: int, world_size: int, message: str) -> None:
    with random_dataset([[10]]) as (_, dataset), pytest.raises(UserError, match=message):
        Reader(dataset, batch_size, lanes=lanes, world_size=world_size)
