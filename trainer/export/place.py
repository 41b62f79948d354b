"""Where an export goes: a folder that is written aside and appears whole, in place of another or not."""

import ctypes
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cetnet.trainer.data.data_files import split_around
from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import unwritable
from cetnet.trainer.files import lock_held
from cetnet.trainer.processes.signals import cleaning_up
from cetnet.trainer.run_folder import check_folder

ABOUT = "about.json"
_AT_WORKING_DIRECTORY, _EXCHANGE = -100, 2  # of renameat2, in <fcntl.h> and <linux/fs.h>


def check_place(out: Path, overwrite: bool) -> None:
    """Raise UserError if no export may be written there; leaves nothing behind."""
    target = _target(out)
    if split := split_around(target):
        raise UserError(f"{out}: {split} holds the rows of a dataset; choose another --out")
    if os.path.lexists(target):
        if not is_export(target):
            raise UserError(f"{out} exists and is no export (it has no {ABOUT}); choose another --out")
        if not overwrite:
            raise UserError(f"{out} exists; replace it with --overwrite, or choose another --out")
    check_folder(target.parent, "--out")


def is_export(folder: Path) -> bool:
    """Whether a folder is one that `cetnet export` wrote."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return isinstance(about, dict) and {"format", "sha256"} <= about.keys()
    except (OSError, ValueError, RecursionError):
        return False


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A folder to write: it becomes `out` when the block ends, and is gone if that is not reached.

    What is at `out` then is there until the new one is, and is removed: whoever looks sees one of them, and whole.
    Of two commands that would write there at once, one is refused.

    Raises:
        UserError: another process writes there, or the disk refuses.
    """
    target = _target(out)
    made = [path for path in target.parents if not path.exists()]
    aside = target.with_name(f".{target.name[:200]}.tmp")
    lock = target.with_name(f".{target.name[:200]}.lock")
    try:
        with cleaning_up():
            target.parent.mkdir(parents=True, exist_ok=True)
            with lock_held(
                lock, f"{out}: another process exports to it; wait for it, or choose another --out"
            ):
                try:
                    shutil.rmtree(aside, ignore_errors=True)  # what a crash left
                    aside.mkdir()
                    yield aside
                    _sync(aside)
                    _put(aside, target)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
                    lock.unlink(missing_ok=True)
    except OSError as error:
        if error.filename is not None and str(aside) not in str(error.filename):
            raise
        raise UserError(unwritable(out, error)) from error
    finally:
        with suppress(OSError):  # not empty: it was reached, or another has written there
            for path in made:
                path.rmdir()


def _target(out: Path) -> Path:
    return Path(os.path.realpath(out)) if out.is_symlink() else out.absolute()


def _put(aside: Path, target: Path) -> None:
    """Give the new folder its name; the old one, if any, has the other's name then."""
    if not target.exists():
        aside.rename(target)
        return
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(aside), os.fsencode(target)
    if exchange and not exchange(_AT_WORKING_DIRECTORY, names[0], _AT_WORKING_DIRECTORY, names[1], _EXCHANGE):
        return
    # A file system without it: for a moment there is neither.
    old = aside.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)  # what a crash left
    target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        old.rename(target)
        raise
    old.rename(aside)


def _sync(folder: Path) -> None:
    """Wait until all that is in a folder is on the disk."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
