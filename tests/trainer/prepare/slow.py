"""A slow preparation in plain Python, to compare with: lists of values by split in, what must come out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cetnet.models.schema import Schema
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.prepare.engine.layout import SPLITS

Rows = list[
    dict[str, Any]
]  # a text, a list of texts (oldest first) or a number for each column; None is missing


def values_of(row: Mapping[str, Any], feature: str) -> list[Any]:
    value = row[feature]
    return value if isinstance(value, list) else [value]


def check_prepared(
    out: Path,
    expected: Mapping[str, Rows],
    min_counts: Mapping[str, int] | int,
    keys: Mapping[str, Sequence[str]] | None = None,
) -> Schema:
    """Compare a prepared dataset with rows by split, in their order; `min_counts` by table.

    Which id a value gets is free, but 0 is for missing and rare values and for those that train lacks. In tables with
    `keys` these have ids, in their order, and no other values.
    """
    schema = read_schema(out / "schema.yaml")
    card = json.loads((out / "card.json").read_text())
    tables = {split: pq.read_table(out / split).to_pydict() for split in SPLITS}
    for split in SPLITS:
        assert len(tables[split][schema.label]) == len(expected[split]) == card["splits"][split]["rows"]
        assert tables[split][schema.label] == [float(row[schema.label]) for row in expected[split]]
        for name in filter(None, (schema.group, schema.timestamp)):
            assert tables[split][name] == [int(row[name]) for row in expected[split]], name
    for feature in schema.dense_features:
        for split in SPLITS:
            found = tables[split][feature.name]
            assert all(
                abs(value - (row[feature.name] or 0.0)) <= 1e-5 * max(1, abs(value))
                for value, row in zip(found, expected[split], strict=True)
            ), feature.name
    for table, size in schema.tables.items():
        names = [feature.name for feature in schema.id_features if feature.table == table]
        counts = Counter(v for name in names for row in expected["train"] for v in values_of(row, name))
        least = min_counts if isinstance(min_counts, int) else min_counts[table]
        kept = {value for value, count in counts.items() if count >= least and value is not None}
        ids: dict[Any, int] = {}
        if keys and table in keys:
            ids = {key: number for number, key in enumerate(sorted(keys[table]), start=1)}
            kept = set(ids)
        assert size == len(kept) + 1, table
        for name in names:
            for split in SPLITS:
                for found, row in zip(tables[split][name], expected[split], strict=True):
                    found_ids = found if isinstance(found, list) else [found]
                    values = values_of(row, name)
                    assert len(found_ids) == len(values), name
                    for number, value in zip(found_ids, values, strict=True):
                        if value in kept:
                            assert number > 0
                            assert ids.setdefault(value, number) == number, (name, value)
                        else:
                            assert number == 0, (name, value)
        assert sorted(ids.values()) == list(range(1, size)), table
    return schema


def check_like(schema: Schema, other: Path) -> None:
    """The same names, kinds, tables and roles as in a schema that studies draw smoke rows from."""
    theirs = read_schema(other)
    assert (schema.label, schema.group, list(schema.tables)) == (
        theirs.label,
        theirs.group,
        list(theirs.tables),
    )
    assert schema.pretrained == theirs.pretrained
    ours = [(f.name, f.kind, f.table, f.max_length, f.behavior) for f in schema.features]
    assert ours == [(f.name, f.kind, f.table, f.max_length, f.behavior) for f in theirs.features]


def by_split(rows: Sequence[dict[str, Any]], split: Sequence[int]) -> dict[str, Rows]:
    """Rows by their index into SPLITS."""
    return {
        name: [row for row, index in zip(rows, split, strict=True) if index == number]
        for number, name in enumerate(SPLITS)
    }


def mix(x: int) -> int:
    """splitmix64's finalizer on Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def loop_hash(text: str) -> int:
    data = text.encode()
    value = mix(len(data))
    for start in range(0, len(data), 8):
        value = mix(value ^ int.from_bytes(data[start : start + 8], "little"))
    return value
