"""Raw rows with every kind of column and mistake that is none, and an encoder of them by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cetnet.trainer.encoder.hashing import hash_ids

ROWS = 150
MAX_LENGTH = 4
RAW_SCHEMA = {
    "label": "clicked",
    "group": "user",
    "weight": "w",
    "timestamp": "ts",
    "min_count": 2,
    "null_values": ["NA"],
    "tables": {"slot": 6},
    "features": [
        {"name": "user_id", "column": "user", "kind": "categorical"},
        {"name": "item", "kind": "categorical"},
        {"name": "slot", "kind": "categorical"},
        {"name": "page", "kind": "categorical", "hash": 20},
        {"name": "tags", "kind": "multi_valued"},
        {"name": "history", "kind": "sequence", "table": "item", "max_length": MAX_LENGTH},
        {"name": "price", "kind": "dense", "transform": "standardize"},
        {"name": "age", "kind": "dense", "transform": "log1p"},
    ],
}
ITEMS = [2**53 + 1, 2**53 + 2, 7, 8, 9, 10]


def draw(seed: int, new: int = 0) -> list[dict[str, Any]]:
    """Rows of a day; `new` shifts users and items, so that some were never seen."""
    rng = np.random.default_rng(seed)

    def some(values: list, most: int) -> list | None:
        chosen = [values[i] for i in rng.integers(0, len(values), rng.integers(0, most + 1))]
        if chosen == ["NA"]:  # in CSV such a cell is no list
            return ["rot", "NA"]
        return None if not chosen and rng.random() < 0.5 else chosen

    items = [item + new for item in ITEMS]
    rows = []
    for number in range(ROWS):
        rows.append(
            {
                "clicked": bool(rng.random() < 0.4),
                "user": None if number % 17 == 5 else f"użytkownik {rng.integers(12) + new}",
                "w": float(rng.integers(0, 4)) / 2,
                "ts": 1_700_000_000 + number,
                "item": None if number % 19 == 3 else items[rng.integers(len(items))],
                "slot": int(rng.integers(6 + new)),
                "page": ["商品", "NA", "", "دمشق", "p|1", 'quote " and, comma'][rng.integers(6)],
                "tags": some(["rot", "grün", "NA", "青", f"new {new}"], 3),
                "history": some(items, MAX_LENGTH + 3),
                "price": None if number % 11 == 4 else float(rng.normal(3, 2)),
                "age": None if number % 13 == 6 else int(rng.integers(90)),
                "device": ["phone", "tv", None][rng.integers(3)],
                "key": f"row {number}",
            }
        )
    return rows


def write_parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int = 40) -> None:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """As people write them, quoted by hand."""

    def cell(value: Any) -> str:
        text = "" if value is None else "|".join(map(str, value)) if isinstance(value, list) else str(value)
        return '"' + text.replace('"', '""') + '"' if set('",') & set(text) else text

    lines = [",".join(rows[0]), *(",".join(cell(value) for value in row.values()) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def encode_by_hand(run: Path, rows: list[dict[str, Any]], out: Path) -> None:
    """A dataset with the split `test`: ids by dictionaries of the run's vocabularies, the rest by arithmetic."""
    ids = {
        file.stem: dict(
            zip(*(pq.read_table(file)[name].to_pylist() for name in ("value", "id")), strict=True)
        )
        for file in (run / "vocabularies").iterdir()
    }
    moments = yaml.safe_load((run / "encoding.yaml").read_text(encoding="utf-8"))["moments"]["price"]

    def find(table: str, value: Any) -> int:
        return 0 if value in (None, "NA", "") else ids[table].get(str(value), 0)

    def numbers(name: str, transform: Any) -> pa.Array:
        return pa.array([0 if row[name] is None else transform(row[name]) for row in rows], pa.float32())

    users = sorted({row["user"] for row in rows} - {None})
    pages = pa.array([None if row["page"] == "NA" else row["page"] for row in rows])
    table = pa.table(
        {
            "clicked": pa.array([float(row["clicked"]) for row in rows], pa.float32()),
            "user": pa.array(
                [None if row["user"] is None else users.index(row["user"]) for row in rows], pa.int64()
            ),
            "w": pa.array([row["w"] for row in rows], pa.float32()),
            "user_id": [find("user_id", row["user"]) for row in rows],
            "item": [find("item", row["item"]) for row in rows],
            "slot": [row["slot"] if row["slot"] < 6 else 0 for row in rows],
            "page": hash_ids(pages, 20),
            "tags": [[find("tags", tag) for tag in row["tags"] or []] for row in rows],
            "history": [[find("item", item) for item in row["history"] or []][-MAX_LENGTH:] for row in rows],
            "price": numbers("price", lambda price: (price - moments[0]) / moments[1]),
            "age": numbers("age", lambda age: np.log1p(float(age))),
            "device": [row["device"] for row in rows],
        }
    )
    (out / "test").mkdir(parents=True)
    pq.write_table(table, out / "test/part.parquet", row_group_size=64)
    (out / "schema.yaml").write_text((run / "schema.yaml").read_text(encoding="utf-8"), encoding="utf-8")


def metrics_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
