"""Which folders are exports, found without anything heavy."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from cetnet.trainer.errors import UserError
from cetnet.trainer.export.place import ABOUT
from cetnet.trainer.export.targets import Target


@dataclass(frozen=True)
class Identity:
    """Which export a folder is: another one in its place has another."""

    folder: Path
    inode: int
    written: int

    @classmethod
    def of(cls, folder: Path) -> "Identity | None":
        """That of an export; None if the folder is none."""
        try:
            return cls(folder, folder.stat().st_ino, (folder / ABOUT).stat().st_mtime_ns)
        except OSError:
            return None


def exports_in(folder: Path) -> list[Identity]:
    """The export that a folder is or, newest first by the natural order of their names, those in it."""
    if itself := Identity.of(folder):
        return [itself]
    try:
        inside = [each for each in folder.iterdir() if not each.name.startswith(".")]
    except OSError:
        return []
    newest_first = sorted(inside, key=lambda each: _natural(each.name), reverse=True)
    return [identity for each in newest_first if (identity := Identity.of(each))]


def content_of(folder: Path) -> tuple[int, int]:
    """Bytes of all files in a folder, and when the last was written: others as long as it is being copied there."""
    try:
        entries = [path.stat() for path in folder.rglob("*") if path.is_file()]
    except OSError:  # one is gone just now
        return 0, 0
    return sum(each.st_size for each in entries), max((each.st_mtime_ns for each in entries), default=0)


def fastest_served(folder: Path) -> Target | None:
    """ONNX if the export has it and it can be run: unlike others it lets batches be scored beside each other.

    AOTInductor's package and a program of torch.export hold Python's lock; None leaves the choice between these to
    the scorer.
    """
    there = (folder / "model.onnx").exists() and importlib.util.find_spec("onnxruntime") is not None
    return "onnx" if there else None


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders step-9 before step-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def check_served(folder: Path) -> None:
    """Raise UserError if there is no export to serve."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make one with `cetnet export RUN --out {folder}`")
    if not exports_in(folder):
        raise UserError(
            f"{folder}: neither an export ({ABOUT} is missing) nor a folder of exports; make one with "
            "`cetnet export RUN --out DIR`"
        )
