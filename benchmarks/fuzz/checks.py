"""What must hold of what a command has made, by readers that have nothing to do with ours."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.benchmarks.fuzz.clicks import Dialect, Unreadable, key, read_csv, read_prepared
from cetnet.benchmarks.fuzz.judge import Failure


def counted(out: Path, expected: int) -> list[Failure]:
    """As many rows as there were."""
    found = sum(pq.read_metadata(path).num_rows for path in out.glob("*/*.parquet"))
    return [] if found == expected else [Failure("rows lost", f"{found - expected:+} rows")]


def files_in(raw: Path) -> list[Path]:
    """The file, or those of a folder."""
    return sorted(raw.iterdir()) if raw.is_dir() else [raw]


def same_as_csv(out: Path, files: list[Path], dialect: Dialect) -> list[Failure]:
    """The prepared rows are those that Python's csv module reads; ids are one to one with values."""
    try:
        expected = [row for path in files for row in read_csv(path, dialect)]
    except Unreadable as error:
        return [Failure("accepted", f"Python's csv: {error}"[:90])]
    found = read_prepared(out)
    if found.num_rows != len(expected):
        return [Failure("rows lost", f"prepare csv: {found.num_rows - len(expected):+} rows")]
    try:
        keys = sorted(key(row) for row in expected)
    except ValueError as error:
        return [Failure("accepted", f"Python: {error}"[:90])]
    names = ("ts", "click", "price")
    if sorted(zip(*(found[name].to_pylist() for name in names), strict=True)) != keys:
        return [Failure("values", "prepare csv: ts, click or price")]
    if len({row["ts"] for row in expected}) < len(expected):
        return []
    order = {int(row["ts"]): row for row in expected}
    for name in ("user", "item", "note"):
        ids: dict[int, str] = {}
        for ts, number in zip(found["ts"].to_pylist(), found[name].to_pylist(), strict=True):
            value = order[ts][name]
            if number and ids.setdefault(number, value) != value:
                return [
                    Failure(
                        "values", f"prepare csv: {name} {number} is {ids[number]!r:.40} and {value!r:.40}"
                    )
                ]
            if number and not value:
                return [Failure("values", f"prepare csv: {name}: an empty value has an id")]
    return []


def same_as_parquet(out: Path, files: list[Path]) -> list[Failure]:
    """As many rows as pyarrow reads, and the same labels and times where their types are plain."""
    try:
        tables = [pq.ParquetFile(path).read(columns=["user", "ts", "click"]) for path in files]
    except (OSError, pa.ArrowException) as error:
        return [Failure("accepted", f"pyarrow: {str(error)[:60]}")]
    found = read_prepared(out)
    expected = sum(one.num_rows for one in tables)
    if found.num_rows != expected:
        return [Failure("rows lost", f"prepare parquet: {found.num_rows - expected:+} rows")]
    if all(pa.types.is_integer(one.schema.field(name).type) for one in tables for name in ("ts", "click")):
        keys = sorted(
            pair
            for one in tables
            for pair in zip(one["ts"].to_pylist(), one["click"].to_pylist(), strict=True)
        )
        if sorted(zip(found["ts"].to_pylist(), found["click"].to_pylist(), strict=True)) != keys:
            return [Failure("values", "prepare parquet: ts or click")]
    return []


def trained(run: Path, split: Path, epochs: int = 1) -> list[Failure]:
    """Every row of the split once, those put aside counted too."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"), parse_constant=_refuse)
    found = result["rows"] + (result.get("quarantined") or 0)
    try:
        expected = epochs * sum(pq.read_table(path, columns=[]).num_rows for path in split.glob("*.parquet"))
    except (OSError, pa.ArrowException) as error:
        return [Failure("accepted", f"pyarrow: {str(error)[:60]}")]
    return [] if found == expected else [Failure("rows lost", f"train: {found} of {expected} rows")]


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def predicted(split: Path, scores: Path) -> list[Failure]:
    """A probability for every row."""
    found = pq.read_table(scores).num_rows
    expected = sum(pq.read_table(path, columns=[]).num_rows for path in split.glob("*.parquet"))
    return [] if found == expected else [Failure("rows lost", f"predict: {found} of {expected} rows")]
