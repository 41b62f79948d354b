"""Example rows of an exported model: raw rows that are hard to get right."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.trainer.encoder.encode import Encoder, WrongValue

_UNKNOWN = ("9007199254740993", "never seen", "", "ein „Wert“ 雪\u0301", '"', "'", "a,b\n", "\0", "-1")
_LONGEST = 12  # of lists that are never cut, and of long sequences without a history
Entry = Mapping[str, Any]


def draw_examples(request: Entry, folder: Path, rows: int = 64, seed: int = 0) -> pa.Table:
    """Raw rows for the model of an export folder, the same for the same seed.

    Values are drawn as often as train has them; there are values that the model doesn't know, missing ones, empty and
    over-long lists, and numbers far from the others. Ids are text, or int64 where the columns hold ids already, and
    dense values float64.

    Args:
        request: what the folder's `request.json` says.
        folder: has `request.json` and the vocabularies.
        rows: how many.
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    uses: dict[str, list[Entry]] = {}
    for entry in request["columns"]:
        uses.setdefault(entry["column"], []).append(entry)
    columns = {name: _column(entries, request, folder, rows, rng) for name, entries in uses.items()}
    encoder = Encoder(folder)
    while True:
        table = pa.table(columns)
        try:
            encoder.encode(table)
            return table
        except WrongValue as wrong:  # of a column that several features read: not each value is one for all
            kept = pa.array(np.arange(rows) != wrong.row)
            column = columns[wrong.column]
            columns[wrong.column] = pa.array(
                [
                    value if keep else None
                    for value, keep in zip(column.to_pylist(), kept.to_pylist(), strict=True)
                ],
                column.type,
            )


def _column(
    entries: list[Entry], request: Entry, folder: Path, rows: int, rng: np.random.Generator
) -> pa.Array:
    """A raw column that one feature reads or several do."""
    ids = [entry for entry in entries if entry["takes"] != "number"]
    lists = [entry for entry in ids if entry["kind"] != "categorical"]
    if not ids:
        return pa.array(_numbers(entries[0], rows, rng), pa.float64())
    entry = lists[0] if lists else ids[0]
    kind = pa.int64() if all(each["takes"] == "integer" for each in ids) else pa.large_string()
    as_cells = len(lists) not in (0, len(entries))  # lists for one feature, values for another
    lengths = _lengths(entry, rows, rng) if lists else np.ones(rows, np.int64)
    values = _values(entry, folder, int(lengths.sum()), rng)
    if kind == pa.large_string():
        values = [None if value is None else str(value) for value in values]
    missing = rng.random(rows) < 0.08
    if not lists:
        return pa.array([None if gone else value for value, gone in zip(values, missing, strict=True)], kind)
    found: list[Any] = []
    for start, length, gone in zip(lengths.cumsum() - lengths, lengths, missing, strict=True):
        of_row = values[start : start + length]
        cell = request["separator"].join(str(value) for value in of_row if value is not None)
        found.append(None if gone else cell if as_cells else of_row)
    return pa.array(found, pa.large_string() if as_cells else pa.large_list(kind))


def _lengths(entry: Entry, rows: int, rng: np.random.Generator) -> np.ndarray:
    longest = entry.get("max_length", _LONGEST)
    lengths = rng.integers(0, min(longest, _LONGEST) + 1, rows)
    lengths[rng.random(rows) < 0.1] = 0
    lengths[rng.random(rows) < 0.05] = longest
    if "max_length" in entry:
        lengths[rng.random(rows) < 0.05] = longest + 3
    return lengths


def _values(entry: Entry, folder: Path, size: int, rng: np.random.Generator) -> list[Any]:
    """Values of an id column, of which some are unknown or missing."""
    rows = entry["rows"]
    values: list[Any]
    if entry["ids"] == "vocabulary":
        table = pq.read_table(folder / entry["file"], columns=["value", "count"])
        weights = table["count"].to_numpy() + 1.0
        if len(weights):
            drawn = rng.choice(len(weights), size, p=weights / weights.sum())
            values = table["value"].take(pa.array(drawn)).to_pylist()
        else:
            values = [None] * size
    elif entry["ids"] == "hash_hex":
        values = [f"{number:08x}" for number in rng.integers(0, 2**32, size)]
    elif entry["ids"] == "hash_text":
        values = [str(number) for number in rng.integers(0, 10**6, size)]
    else:
        values = rng.integers(0, rows, size).tolist()
    kind = rng.random(size)
    for at in np.flatnonzero(kind < 0.05):
        values[at] = None
    for at in np.flatnonzero(kind > 0.9):
        unknown = _UNKNOWN if entry["ids"] in ("vocabulary", "hash_text") else _wrong_ids(entry)
        values[at] = unknown[int(rng.integers(len(unknown)))]
    return values


def _wrong_ids(entry: Entry) -> tuple[Any, ...]:
    return (
        ("0", "ffffffff", "80000000")
        if entry["ids"] == "hash_hex"
        else (-1, entry["rows"], 2**53 + 1, 2**63 - 1)
    )


def _numbers(entry: Entry, rows: int, rng: np.random.Generator) -> list[float | None]:
    """Numbers about as large as in training, as far as that is known, and some far off."""
    center, width = entry.get("mean", 0.0), entry.get("deviation", 1.0)
    lowest = entry.get("lowest", -math.inf)
    far = {"log1p": (2.0**60, -1e6), "log_from_lowest": (2.0**60, lowest - 1)}
    numbers: list[float | None] = list(np.maximum(rng.normal(center, width, rows), lowest).tolist())
    kind = rng.random(rows)
    for at in np.flatnonzero(kind < 0.08):
        numbers[at] = None
    for at in np.flatnonzero(kind > 0.92):
        choices = far.get(entry["transform"], (center - 8 * width, center + 8 * width))
        numbers[at] = (0.0, *choices)[int(rng.integers(3))]
    return numbers
