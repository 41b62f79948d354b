"""A small prepared dataset with every kind of feature, whose labels depend on the ids."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.yaml_files import save_yaml

SPLITS = {"train": 1000, "validation": 200, "test": 200}


def make_schema(weight: bool = False) -> Schema:
    """Every kind of feature; the sequence `history` reads the table of `item`."""
    return Schema(
        label="click",
        group="session",
        weight="weight" if weight else None,
        tables={"user": 50, "item": 40, "tag": 12, "query": 30},
        features=(
            Feature(name="user", kind="categorical"),
            Feature(name="item", kind="categorical"),
            Feature(name="tags", kind="multi_valued", table="tag", mean_length=1.5),
            Feature(name="history", kind="sequence", table="item", max_length=6, mean_length=3),
            Feature(name="queries", kind="sequence", table="query", max_length=4, mean_length=2),
            Feature(name="price", kind="dense"),
            Feature(name="age", kind="dense"),
        ),
    )


def make_table(schema: Schema, rows: int, seed: int | Sequence[int] = 0) -> pa.Table:
    """Random rows; the law of the labels is the same for every seed."""
    law, rng = np.random.default_rng(7), np.random.default_rng(seed)
    effects = {table: law.normal(0, 1.5, size) for table, size in schema.tables.items()}
    columns: dict[str, pa.Array] = {}
    logit = np.zeros(rows)
    for feature in schema.features:
        if feature.kind == "dense":
            values = rng.normal(size=rows).astype(np.float32)
            columns[feature.name] = pa.array(values)
            logit += 0.3 * values
            continue
        effect = effects[str(feature.table)]
        longest = 3 if feature.kind == "multi_valued" else feature.max_length or 1
        lengths = np.ones(rows, int) if feature.kind == "categorical" else rng.integers(0, longest + 1, rows)
        ids = rng.integers(0, len(effect), lengths.sum())
        sums = np.bincount(np.repeat(np.arange(rows), lengths), effect[ids], rows)
        logit += sums / np.maximum(lengths, 1)
        offsets = np.concatenate([[0], lengths.cumsum()])
        columns[feature.name] = (
            pa.array(ids)
            if feature.kind == "categorical"
            else pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids))
        )
    columns[schema.label] = pa.array((rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8))
    if schema.group:
        columns[schema.group] = pa.array(np.arange(rows) // 5)
    if schema.weight:
        columns[schema.weight] = pa.array(rng.integers(0, 4, rows).astype(np.float32))
    return pa.table(columns)


def write_split(directory: Path, table: pa.Table, layout: Iterable[Sequence[int]]) -> None:
    """Write the table's rows as Parquet; `layout` has the sizes of the row groups of each file."""
    directory.mkdir(parents=True, exist_ok=True)
    start = 0
    for index, sizes in enumerate(layout):
        with pq.ParquetWriter(directory / f"part-{index:05d}.parquet", table.schema) as writer:
            for size in sizes:
                writer.write_table(table.slice(start, size), row_group_size=max(size, 1))
                start += size
    assert start == table.num_rows


def write_dataset(
    path: Path,
    rows: Mapping[str, int] = SPLITS,
    row_group_size: int = 64,
    files: int = 2,
    seed: int = 0,
    weight: bool = False,
) -> Schema:
    """Write `schema.yaml` and the splits, each in `files` files of row groups of `row_group_size` rows."""
    schema = make_schema(weight)
    path.mkdir(parents=True, exist_ok=True)
    save_yaml(path / "schema.yaml", schema)
    for index, (split, count) in enumerate(rows.items()):
        layout = []
        for file in range(files):
            size = count * (file + 1) // files - count * file // files
            layout.append([min(row_group_size, size - start) for start in range(0, size, row_group_size)])
        write_split(path / split, make_table(schema, count, (seed, index)), layout)
    return schema
