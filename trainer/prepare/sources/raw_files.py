"""What the readers of public datasets share: which files are there, and numbers in columns of text."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import Mistake

Protocol = Literal["multi_embedding", "x4_001", "x4_002", "x1"]


def first_line(path: Path) -> str:
    """The first line of a text file, without its end; a missing, empty or binary file is a UserError."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file; give the directory with the dataset's files")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            line = file.readline(1_000_000).decode()
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: is it packed?") from error
    if not line.strip():
        raise UserError(f"{path} is empty")
    return line.rstrip("\r\n")


def check_header(path: Path, columns: Sequence[str], dataset: str) -> None:
    """Raise UserError for a CSV file whose header is not these columns, in this order."""
    found = first_line(path).split(",")
    if found != list(columns):
        where = next((i for i, (a, b) in enumerate(zip(found, columns, strict=False)) if a != b), None)
        what = f"{len(found)} columns, not {len(columns)}"
        if where is not None:
            what = f"column {where + 1} named {found[where]!r}, not {columns[where]!r}"
        raise UserError(f"{path} is not of {dataset}: its header has {what}")


def given_files(directory: Path, dataset: str, validation: bool) -> dict[str, list[Path]]:
    """`train.csv`, `valid.csv` and `test.csv` by split; without `validation` that is `test.csv` again."""
    names = {
        "train": "train.csv",
        "validation": "valid.csv" if validation else "test.csv",
        "test": "test.csv",
    }
    for name in names.values():
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing: give the directory with all files of {dataset}")
    return {split: [directory / name] for split, name in names.items()}


def choose_protocol(
    raw: Path,
    dataset: str,
    file: str,
    repacked: Literal["x1", "x4"] | None,
    protocol: Protocol | None,
    split: str,
) -> tuple[Protocol, str]:
    """The protocol asked for, or the first one that the files can have; and what the files are, in words.

    `file` is the challenge's own, of which `repacked` ("x1", "x4" or None) is a re-packed form. A protocol or a
    split that the files can't have is a UserError.
    """
    what = f"{dataset}_{repacked}" if repacked else f"{dataset}'s {file}"
    possible: dict[str | None, list[Protocol]]
    possible = {"x1": ["x1"], "x4": ["x4_001", "x4_002"], None: ["multi_embedding", "x4_001", "x4_002"]}
    protocol = protocol or possible[repacked][0]
    if protocol not in possible[repacked]:
        other = f"the directory of {dataset}_x1" if protocol == "x1" else f"{dataset}'s {file}"
        raise UserError(f"{raw} holds {what}, which can't be prepared as {protocol}: give {other}")
    if repacked and split != "published":
        raise UserError(
            f"{raw} holds {what}, which is split already: for --split {split} give {dataset}'s {file}"
        )
    return protocol, what


def converted(frame: pl.DataFrame, values: Mapping[str, pl.Expr], expected: str) -> pl.DataFrame:
    """These columns with these values; raises Mistake where one is null, and the column's text is not."""
    result = frame.select(**values)
    for name in values:
        if result[name].null_count() > frame[name].null_count():
            row = (result[name].is_null() & frame[name].is_not_null()).arg_max()
            assert row is not None
            raise Mistake(name, row, expected)
    return result


def integers(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of text as Int64, nothing as null; raises Mistake for other text."""
    values = {name: pl.col(name).cast(pl.Int64, strict=False) for name in columns}
    return converted(frame, values, "an integer or nothing")
