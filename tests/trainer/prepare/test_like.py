"""New rows by an earlier dataset's vocabularies: against an oracle in plain polars and dictionaries."""

import csv
import json
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
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.models.schema import Schema
from cetnet.trainer.data.dataset import load_schema
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from cetnet.trainer.prepare.engine.tasks import Resources, TaskSizes
from tests.trainer.prepare.conftest import SMALL
from tests.trainer.prepare.slow import loop_hash
from tests.trainer.prepare.test_engine import tree

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


@pytest.fixture(scope="module", params=["csv", "parquet"])
def day_one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    folder = tmp_path_factory.mktemp("day_one")
    return first_day(folder, request.param, draw(1, 300, 0))


def prepare_like(folder: Path, name: str, rows: Rows, like: Path, kind: str = "csv", **options: Any) -> Path:
    """A dataset of these rows."""
    raw, format = folder / f"{name}.{kind}", Path(f"x.{kind}").suffix[1:]
    write_rows(raw, rows, options.pop("without", ()))
    given: Any = format
    prepare_tabular(given, raw, folder / name, like=like, command="c", **{"workers": 1, **options})
    return folder / name


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_next_day(tmp_path: Path, day_one: tuple[Path, Oracle], kind: str) -> None:
    first, oracle = day_one
    rows = draw(2, 200, 7)
    random.Random(1).shuffle(rows)  # not in the order of time
    out = prepare_like(tmp_path, "next", rows, first, kind)
    check_rows(out / "test", rows, oracle)
    others = pq.read_table(out / "test").select(["click", "user_group", "time"]).to_pylist()
    assert others == [{"click": r["click"], "user_group": r["user"], "time": r["time"]} for r in rows]
    oracle.check_vocabularies(out)
    for path in sorted((first / "vocabularies").iterdir()):
        assert (out / "vocabularies" / path.name).read_bytes() == path.read_bytes()
    assert (out / "encoding.yaml").read_bytes() == (first / "encoding.yaml").read_bytes()

    def but_lengths(schema: Schema) -> dict[str, Any]:
        return schema.model_dump(exclude={"features": {"__all__": {"mean_length"}}})

    assert but_lengths(load_schema(out)) == but_lengths(load_schema(first))
    lengths = {feature.name: feature.mean_length for feature in load_schema(out).features}
    assert lengths["history"] == round(sum(len(row["history"][-3:]) for row in rows) / 200, 4)


def test_the_days_rows_again_are_as_they_were(tmp_path: Path, day_one: tuple[Path, Oracle]) -> None:
    first, oracle = day_one
    rows = draw(1, 300, 0)
    out = prepare_like(tmp_path, "again", rows, first, split="time:0.8,0.1,0.1")
    oracle.check_vocabularies(out)
    for split in ("train", "validation", "test"):
        assert pq.read_table(out / split).equals(pq.read_table(first / split))
    drift = json.loads((out / "card.json").read_text())["drift"]
    assert max(abs(change) for each in drift for change in each["changes"].values()) < 0.3


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 3, 40]))
def test_growth_and_its_growth(tmp_path_factory: pytest.TempPathFactory, seed: int, window: int) -> None:
    folder = tmp_path_factory.mktemp("growth")
    rows = draw(seed, 120, 0)
    first, oracle = first_day(folder, "parquet", rows)
    days = [draw(seed + day, 100, window * day) for day in (1, 2)]
    like = first
    for number, day in enumerate(days):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Resources, "sizes", lambda _: SMALL)
            small = prepare_like(folder, f"small{number}", day, like, grow=True, split="time:0.8,0.1,0.1")
            patch.setattr(Resources, "sizes", lambda _: TaskSizes(10**6, 10**9))
            raw, grown = folder / f"small{number}.csv", folder / f"grown{number}"
            prepare_tabular(
                "csv", raw, grown, None, "time:0.8,0.1,0.1", like=like, grow=True, command="c", workers=1
            )
        if number == 0:  # the second is like another folder, whose name is in the card
            assert tree(small) == tree(grown)
        oracle.grow(day[:80])
        oracle.check_vocabularies(grown)
        for split, part in (("train", day[:80]), ("validation", day[80:90]), ("test", day[90:])):
            check_rows(grown / split, part, oracle)
            check_rows(small / split, part, oracle)
        like = grown
