"""What one task reads of a raw file, and a value in it that is not what the schema says."""

from dataclasses import dataclass
from pathlib import Path

from cetnet.trainer.errors import UserError


@dataclass(frozen=True)
class Unit:
    """What one task reads: bytes of a CSV file (all of one that is a stream), or row groups of a Parquet file.

    Attributes:
        path: the file.
        file: its number among all files.
        split: index into SPLITS, where files are given by split.
        start, stop: of bytes, or of row groups.
        size: bytes, for progress.
        columns: names of the columns of CSV.
        keys: columns of text, or null, with one value in the whole file.
    """

    path: Path
    file: int
    split: int | None
    start: int
    stop: int
    size: int
    columns: tuple[str, ...] = ()
    keys: tuple[tuple[str, str | None], ...] = ()


class BadValue(UserError):
    """A value that is not what the schema says. Args: unit, column, row (from 1, of the unit), expected."""

    def __str__(self) -> str:
        unit, column, row, expected = self.args
        return f"{unit.path}: column {column!r}, row {row}: expected {expected}"


class BadRow(BadValue):
    """A row that is not CSV. Args: unit, line (from 1, of the file), row (from 1, of the unit), what is wrong."""

    def __str__(self) -> str:
        unit, line, row, what = self.args
        return f"{unit.path}: row {row} (line {line}): {what}"
