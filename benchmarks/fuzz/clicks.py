"""The unharmed files that commands are given, and what an independent reader finds in them."""

import csv
import gzip
import io
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROWS = 80
COLUMNS = ("user", "item", "tags", "history", "note", "price", "ts", "click")
SCHEMA: dict[str, Any] = {
    "label": "click",
    "timestamp": "ts",
    "features": [
        {"name": "user", "kind": "categorical"},
        {"name": "item", "kind": "categorical", "table": "item"},
        {"name": "tags", "kind": "multi_valued"},
        {"name": "history", "kind": "sequence", "table": "item", "max_length": 5},
        {"name": "note", "kind": "categorical"},
        {"name": "price", "kind": "dense"},
    ],
}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written; `quote` None: no quotes."""

    delimiter: str = ","
    quote: str | None = '"'
    header: bool = True

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of the raw schema that say so."""
        return {
            "delimiter": self.delimiter,
            "quote": self.quote,
            **({} if self.header else {"header": list(COLUMNS)}),
        }


def rows(rng: random.Random, count: int = ROWS) -> list[dict[str, Any]]:
    """Clicks; every timestamp is there once."""
    notes = [
        "plain",
        "",
        'a "quoted" word',
        "a, comma",
        "two\nlines",
        "d\u00e9j\u00e0 vu",
        "5 disc",
        "x;y\tz",
    ]
    made = []
    for number in range(count):
        made.append(
            {
                "user": f"u{rng.randrange(9)}",
                "item": rng.randrange(1, 25),
                "tags": [f"t{rng.randrange(5)}" for _ in range(rng.randrange(3))],
                "history": [rng.randrange(1, 25) for _ in range(rng.randrange(7))],
                "note": rng.choice(notes),
                "price": None if rng.random() < 0.01 else round(rng.random() * 100, 2),
                "ts": 1_700_000_000 + 60 * number,
                "click": int(rng.random() < 0.4),
            }
        )
    return made


def csv_bytes(
    clicks: Iterable[dict[str, Any]], dialect: Dialect, quote_all: bool = False, end: str = "\n"
) -> bytes:
    """A CSV file of clicks; where there are no quotes, notes have nothing that wants them."""
    text = io.StringIO(newline="")
    writer = csv.writer(
        text,
        delimiter=dialect.delimiter,
        quotechar=dialect.quote,
        quoting=csv.QUOTE_NONE
        if dialect.quote is None
        else csv.QUOTE_ALL
        if quote_all
        else csv.QUOTE_MINIMAL,
        lineterminator=end,
    )
    if dialect.header:
        writer.writerow(COLUMNS)
    for click in clicks:
        cells = [_cell(click[name]) for name in COLUMNS]
        if dialect.quote is None:
            cells = ["".join(c for c in cell if c not in f'\n\r"{dialect.delimiter}') for cell in cells]
        writer.writerow(cells)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "|".join(map(str, value))
    return "" if value is None else str(value)


def table(clicks: list[dict[str, Any]]) -> pa.Table:
    """Clicks as Arrow's columns."""
    return pa.Table.from_pylist(clicks)


class Unreadable(Exception):
    """An independent reader can't read it, or finds something else than the schema's columns."""


def read_csv(path: Path, dialect: Dialect) -> list[dict[str, str]]:
    """What Python's csv module finds in a file; blank lines are no rows. Raises Unreadable."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise Unreadable(str(error)) from None
    csv.field_size_limit(1 << 30)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=dialect.delimiter,
        quotechar=dialect.quote,
        quoting=csv.QUOTE_NONE if dialect.quote is None else csv.QUOTE_MINIMAL,
    )
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise Unreadable(str(error)) from None
    names = lines.pop(0) if dialect.header and lines else list(COLUMNS)
    if any(names.count(name) != 1 for name in COLUMNS):
        raise Unreadable(f"the header is {names}")
    for number, line in enumerate(lines, 1):
        if len(line) != len(names):
            raise Unreadable(f"row {number} has {len(line)} fields, the header {len(names)}")
    return [dict(zip(names, line, strict=True)) for line in lines]


def key(row: dict[str, Any]) -> tuple[int, float, float]:
    """Timestamp, label and price of a raw row of CSV, as the prepared files have them; raises ValueError."""
    if any("_" in row[name] for name in ("ts", "click", "price")):
        raise ValueError("Python's digits, nobody else's")
    price = float(np.float32(row["price"])) if row["price"] != "" else 0.0
    return int(row["ts"]), float(row["click"]), 0.0 if np.isnan(price) else price


def read_prepared(out: Path) -> pa.Table:
    """All splits of a prepared dataset, one after the other."""
    parts = [pq.read_table(path) for split in SPLITS for path in sorted((out / split).glob("*.parquet"))]
    return pa.concat_tables(parts)


def write_yaml(path: Path, content: Any) -> None:
    """Plain YAML, keys in their order."""
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
