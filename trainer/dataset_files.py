"""What a run keeps of its dataset so that rows can be scored without it: which ids raw values have, and its card."""

import shutil
from pathlib import Path

from cetnet.trainer.files import link_or_copy

VOCABULARIES = "vocabularies"
_FILES = ("encoding.yaml", "card.json")


def take_dataset_files(data: Path, folder: Path, run: Path) -> None:
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
        before = run / VOCABULARIES / file.name
        same = before.is_file() and _entry(before) == _entry(file)
        link_or_copy(before if same else file, folder / VOCABULARIES / file.name)


def drop_dataset_files(run: Path) -> None:
    """Remove what a run folder has of it, as of a start on other data."""
    for name in _FILES:
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / VOCABULARIES, ignore_errors=True)


def _entry(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns
