"""Preparations of harmed raw files."""

import gzip
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.benchmarks.fuzz.bases import SOURCES
from cetnet.benchmarks.fuzz.case import Case
from cetnet.benchmarks.fuzz.checks import counted, files_in, same_as_csv, same_as_parquet
from cetnet.benchmarks.fuzz.clicks import (
    SCHEMA,
    csv_bytes,
    rows,
    table,
    write_yaml,
)
from cetnet.benchmarks.fuzz.harm import csv_text
from cetnet.benchmarks.fuzz.harm.columns import harm_columns, writer_options
from cetnet.benchmarks.fuzz.harm.files import ANY_FILE
from cetnet.benchmarks.fuzz.judge import Failure


def _prepare(case: Case, format: str, raw: str, check: Callable[[], list[Failure]]) -> None:
    """The command, and what must hold of what it makes."""
    split = case.rng.choice(["random:0.8,0.1,0.1", "time:0.6,0.2,0.2"])
    case.inputs, case.outputs, case.made = [raw, "raw.yaml"], ["out"], ["out"]
    case.arguments = [
        "prepare",
        format,
        "--raw",
        raw,
        "--schema",
        "raw.yaml",
        "--out",
        "out",
        "--split",
        split,
    ]
    case.arguments += ["--workers", "1"]
    case.checks.append(check)


def prepare_csv(case: Case) -> None:
    """Your own CSV files: odd values, written as they should be or not, and harmed bytes."""
    rng = case.rng
    dialect = csv_text.draw_dialect(rng)
    write_yaml(case.folder / "raw.yaml", {**SCHEMA, **dialect.keys})
    clicks = rows(rng, rng.choice([60, 80, 200]))
    if odd_values := rng.random() < 0.4:
        case.done.append(csv_text.odd_ids(rng, clicks))
    suffix = ".csv.gz" if rng.random() < 0.15 else ".csv"
    count = rng.choice([1, 1, 1, 2, 3])
    files = []
    for number in range(count):
        part = clicks[len(clicks) * number // count : len(clicks) * (number + 1) // count]
        content = csv_bytes(part, dialect, rng.random() < 0.3, rng.choice(["\n", "\n", "\r\n"]))
        path = case.folder / "raw" / f"part-{number}{suffix}"
        path.parent.mkdir(exist_ok=True)
        files.append(path)
        path.write_bytes(content)
    if not odd_values or rng.random() < 0.2:
        path = rng.choice(files)
        for _ in range(rng.choice([0, 1, 1, 1, 1, 2])):
            case.harm_file(path, csv_text.csv_ways(dialect.delimiter.encode()))
        if suffix == ".csv.gz" and rng.random() < 0.5:
            case.harm_file(path, [csv_text.harm_gzip])
            suffix = ""
    if suffix == ".csv.gz":
        for path in files:
            path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    raw = "raw" if count > 1 or rng.random() < 0.3 else f"raw/{files[0].name}"
    _prepare(case, "csv", raw, lambda: same_as_csv(case.at("out"), files_in(case.at(raw)), dialect))


def prepare_yaml(case: Case) -> None:
    """Your own CSV files, the raw schema harmed."""
    case.take("clicks.csv", "raw.yaml")
    case.harm_yaml(case.folder / "raw.yaml")
    _prepare(case, "csv", "clicks.csv", lambda: counted(case.at("out"), 80))


def prepare_parquet(case: Case) -> None:
    """Your own Parquet files: columns of other types, or bytes harmed."""
    rng = case.rng
    case.take("raw.yaml")
    count = rng.choice([1, 1, 2])
    clicks = rows(rng)
    files = [case.folder / "raw" / f"part-{number}.parquet" for number in range(count)]
    files[0].parent.mkdir()
    for number, path in enumerate(files):
        columns = table(clicks[len(clicks) * number // count : len(clicks) * (number + 1) // count])
        if number == count - 1:
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                columns, what = harm_columns(rng, columns)
                case.done.append(f"{path.name}: {what}")
        options = writer_options(rng)
        try:
            pq.write_table(columns, path, row_group_size=rng.choice([7, 30, 1000]), **options)
        except pa.ArrowInvalid:  # of times that these options would cut
            pq.write_table(columns, path)
    if rng.random() < 0.35:
        case.harm_file(rng.choice(files), ANY_FILE)
    _prepare(case, "parquet", "raw", lambda: same_as_parquet(case.at("out"), files_in(case.at("raw"))))


def prepare_source(case: Case) -> None:
    """A public dataset's files, harmed."""
    name = case.rng.choice(list(SOURCES))
    command, options = SOURCES[name]
    case.take(f"sources/{name}")
    files = sorted(path for path in (case.folder / "sources" / name).rglob("*") if path.is_file())
    if case.rng.random() < 0.95:
        path = case.rng.choice(files)
        if case.rng.random() < 0.1:
            path.unlink()
            case.done.append(f"{path.name}: missing")
        else:
            case.harm_file(path, csv_text.CSV if path.suffix in (".csv", ".txt") else ANY_FILE)
    raw = f"sources/{name}/{files[0].name}" if name in ("avazu", "criteo") else f"sources/{name}"
    case.inputs, case.outputs = [raw], ["out"]
    case.arguments = ["prepare", command, "--raw", raw, "--out", "out", *options]
    case.made = ["out"]
