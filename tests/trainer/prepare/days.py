"""Days of clicks, and an oracle that encodes them by hand, in plain polars and dictionaries."""

import csv
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from cetnet.trainer.data.dataset import load_schema
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from tests.trainer.prepare.slow import loop_hash

Rows = list[dict[str, Any]]
SCHEMA: dict[str, Any] = {
    "label": "click",
    "group": "user",
    "timestamp": "time",
    "min_count": 2,
    "whole_floats": "integer",
    "null_values": ["\\N"],
    "features": [
        {"name": "user", "kind": "categorical", "min_count": 1},
        {"name": "item", "kind": "categorical", "column": "the item"},
        {"name": "tags", "kind": "multi_valued"},
        {"name": "history", "kind": "sequence", "table": "item", "max_length": 3},
        {"name": "page", "kind": "categorical"},
        {"name": "device", "kind": "categorical"},
        {"name": "site", "kind": "categorical", "hash": 50},
        {"name": "price", "kind": "dense", "transform": "log1p"},
        {"name": "age", "kind": "dense", "transform": "standardize"},
        {"name": "lag", "kind": "dense", "transform": "log_from_lowest"},
    ],
    "tables": {"device": 4},
}
ITEMS = [
    "книга",
    "書",
    "📚",
    "two\r\nlines",
    "two\nlines",
    'a "quote", and more',
    " ",
    "A",
    "a",
    "x" * 300,
    "7",
    "07",
]


def draw(seed: int, rows: int, first: int) -> Rows:
    """Rows of a day; `first` moves the window that its values come from."""
    pick = random.Random(seed)
    items = [*ITEMS[first % 5 :], *(f"i{k}" for k in range(first, first + 30))]
    return [
        {
            "click": pick.randrange(2),
            "user": 2**60 + pick.randrange(first, first + 40),  # neighbours beyond 2**53
            "time": 1000 + i,
            "the item": pick.choice([None, *items]),
            "tags": pick.choice(
                [None, [], ["ü", *pick.choices(["ä", "ö", None, str(first)], k=pick.randrange(3))]]
            ),
            "history": [pick.choice(items) for _ in range(pick.randrange(6))],
            "page": pick.choice([None, f"{pick.randrange(first, first + 9)}.0", "home"]),
            "device": pick.randrange(6 if first else 4),
            "site": pick.choice([None, "a.example", f"{first}.example"]),
            "price": pick.choice([None, pick.uniform(-5, 50)]),
            "age": pick.choice([None, pick.gauss(40 + first, 10)]),
            "lag": pick.choice([None, float(pick.randrange(-3, 20))]),
        }
        for i in range(rows)
    ]


def write_rows(path: Path, rows: Rows, without: Sequence[str] = ()) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = [{name: value for name, value in row.items() if name not in without} for row in rows]
    if path.suffix == ".parquet":
        types = {"tags": pl.List(pl.String), "price": pl.Float64, "the item": pl.String, "page": pl.String}
        types |= {"site": pl.String, "age": pl.Float64, "lag": pl.Float64, "history": pl.List(pl.String)}
        overrides = {name: dtype for name, dtype in types.items() if name in rows[0]}
        pl.DataFrame(rows, schema_overrides=overrides).write_parquet(path, row_group_size=70)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            lists = {
                name: "|".join("\\N" if text is None else text for text in row[name] or ())
                for name in ("tags", "history")
            }
            writer.writerow({n: "\\N" if v is None and n == "price" else v for n, v in row.items()} | lists)


class Oracle:
    """Vocabularies as a person would make them, one value at a time."""

    def __init__(self) -> None:
        self.ids: dict[str, dict[str, int]] = {table: {} for table in ("user", "item", "tags", "page")}
        self.counts: dict[str, Counter[str]] = {table: Counter() for table in self.ids}

    @staticmethod
    def texts(row: dict[str, Any], table: str) -> list[str]:
        if table == "user":
            return [str(row["user"])]
        if table == "tags":
            return [text for text in row["tags"] or [] if text is not None]
        if table == "page":
            return [] if row["page"] is None else [row["page"].removesuffix(".0")]
        return ([] if row["the item"] is None else [row["the item"]]) + row["history"][-3:]

    def grow(self, train: Rows) -> None:
        for table, ids in self.ids.items():
            seen = Counter(text for row in train for text in self.texts(row, table))
            least = 1 if table == "user" else 2
            new = sorted((text for text in seen if text not in ids and seen[text] >= least), key=str.encode)
            ids.update({text: len(ids) + i for i, text in enumerate(new, 1)})
            for text in ids:
                self.counts[table][text] += seen[text]

    def learn_transforms(self, train: Rows, file: Rows) -> None:
        ages = pl.Series([row["age"] for row in train], dtype=pl.Float64).drop_nulls()
        self.mean, self.deviation = ages.mean(), ages.std(ddof=0)
        self.lowest = min(row["lag"] or 0.0 for row in file)

    def encode(self, row: dict[str, Any]) -> dict[str, Any]:
        ids = self.ids
        assert isinstance(self.mean, float)
        assert isinstance(self.deviation, float)
        price = row["price"] or 0.0
        site = row["site"]
        lag = max(row["lag"] or 0.0, self.lowest)
        return {
            "user": ids["user"].get(str(row["user"]), 0),
            "item": ids["item"].get(row["the item"], 0),
            "tags": [ids["tags"].get(text, 0) for text in row["tags"] or ()],
            "history": [ids["item"].get(text, 0) for text in row["history"][-3:]],
            "page": ids["page"].get((row["page"] or "").removesuffix(".0"), 0),
            "device": row["device"] if row["device"] < 4 else 0,
            "site": 0 if site is None else 1 + loop_hash(site) % 49,
            "price": pytest.approx(math.copysign(math.log1p(abs(price)), price), rel=1e-5),
            "age": pytest.approx(
                0.0 if row["age"] is None else (row["age"] - self.mean) / self.deviation, rel=1e-4, abs=1e-5
            ),
            "lag": pytest.approx(math.log(lag - self.lowest + 2), rel=1e-5),
        }

    def check_vocabularies(self, out: Path) -> None:
        for table, ids in self.ids.items():
            expected = [{"value": v, "id": i, "count": self.counts[table][v]} for v, i in ids.items()]
            assert pq.read_table(out / f"vocabularies/{table}.parquet").to_pylist() == expected
            assert load_schema(out).tables[table] == 1 + len(ids)


def check_rows(found: Path, rows: Rows, oracle: Oracle) -> None:
    features = [feature["name"] for feature in SCHEMA["features"]]
    written = pq.read_table(found).select(features).to_pylist()
    assert written == [oracle.encode(row) for row in rows]


def first_day(folder: Path, kind: str, rows: Rows) -> tuple[Path, Oracle]:
    """The dataset of a first day, of which the first 80 % are train."""
    write_rows(folder / f"first.{kind}", rows)
    (folder / "raw.yaml").write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
    out = folder / "first"
    format: Any = kind
    prepare_tabular(
        format, folder / f"first.{kind}", out, folder / "raw.yaml", "time:0.8,0.1,0.1", workers=1, command="c"
    )
    oracle, train = Oracle(), rows[: int(0.8 * len(rows))]
    oracle.grow(train)
    oracle.learn_transforms(train, rows)
    return out, oracle
