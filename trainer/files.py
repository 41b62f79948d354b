"""Files that are whole or absent, and what a disk refuses said in one line."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

from cetnet.trainer.errors import UserError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A place to write a file: it becomes `path` when the block ends, and is gone if that is not reached."""
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield aside
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text)


def write_json(path: Path, content: object, indent: int | None = 1) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Make what the disk refuses in this block a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make room or repair the disk, and go on with --resume"
        ) from error


def check_writable(path: Path) -> None:
    """Raise UserError if a file can't be written there, folders made as needed; leaves nothing behind."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; name another")
        with TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())):
            pass
        if path.exists():
            path.open("a").close()
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}; name another place") from None


def drop_lines_after(file: Path, step: int) -> int:
    """Drop the lines of later steps from a file of JSON lines; returns how many are left."""
    lines = file.read_text().splitlines(keepends=True)
    # A line cut short by a crash has no newline; it is dropped like those beyond the step.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_text(file, "".join(kept))
    return len(kept)


def without_nonfinite(values: dict[str, Any]) -> dict[str, Any]:
    """The same with NaN and infinity as None, which JSON has no word for."""
    return {
        key: without_nonfinite(value)
        if isinstance(value, dict)
        else (None if isinstance(value, float) and not math.isfinite(value) else value)
        for key, value in values.items()
    }
