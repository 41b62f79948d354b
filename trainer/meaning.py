"""What a run keeps of its dataset so that rows can be scored without it: which ids raw values have, and its card."""

import errno
import os
import shutil
from pathlib import Path

from cetnet.trainer.console import console

VOCABULARIES = "vocabularies"
_FILES = ("encoding.yaml", "card.json")
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_SAID_BYTES = 100_000_000


def take_meaning(data: Path, folder: Path, run: Path) -> None:
    """Put the vocabularies, `encoding.yaml` and `card.json` of a dataset, as far as it has them, into a new folder.

    Vocabularies are hard links; on another file system they are copies, or links to those that `run` has of before.
    """
    for name in _FILES:
        if (data / name).is_file():
            shutil.copyfile(data / name, folder / name)
    if not (data / VOCABULARIES).is_dir():
        return
    (folder / VOCABULARIES).mkdir()
    for file in sorted((data / VOCABULARIES).glob("*.parquet")):
        _link(file.resolve(), folder / VOCABULARIES / file.name, run / VOCABULARIES / file.name)


def drop_meaning(run: Path) -> None:
    """Remove what a run folder has of it, as of a start on other data."""
    for name in _FILES:
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / VOCABULARIES, ignore_errors=True)


def _link(source: Path, target: Path, before: Path) -> None:
    same_before = before.is_file() and _entry(before) == _entry(source)
    for file in [source, *([before] if same_before else [])]:
        try:
            os.link(file, target)
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    if (size := source.stat().st_size) > _SAID_BYTES:
        console.print(f"{source}: copying {size / 1e6:,.0f} MB into the run, as it can't be linked there")
    shutil.copy2(source, target)


def _entry(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns
