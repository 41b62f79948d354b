"""Paths in configurations: such that a file system takes them."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def _usable(path: Path) -> Path:
    """A path that file systems take, with room for what is written below it."""
    if len(os.fsencode(path)) > 1000 or any(len(os.fsencode(part)) > 200 for part in path.parts):
        raise ValueError("a path of more than 1000 bytes, or a name in it of more than 200")
    return path


def _usable_place(place: str) -> str:
    """A path or the URL of a place, such that it can be both made and read."""
    if not place:
        raise ValueError("empty; leave it out for the default")
    _usable(Path(place))
    return place


UsablePath = Annotated[Path, AfterValidator(_usable)]
UsablePlace = Annotated[str, AfterValidator(_usable_place)]
