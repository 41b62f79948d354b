"""Files that are whole or absent, folders of one process, and what a disk refuses said in one line."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BeforeValidator

from cetnet.trainer.console import console
from cetnet.trainer.data.data_files import split_around
from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import unwritable
from cetnet.trainer.processes.signals import cleaning_up

_KEPT = (
    "schema.yaml",
    "encoding.yaml",
    "card.json",
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "result.json",
)

_SAID_BYTES = 100_000_000


def _target(path: Path) -> Path:
    """What a link leads to; else the path itself: /proc/PID/root in it would lead elsewhere when resolved."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path.absolute()


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A place to write a file: it becomes `path` when the block ends, and is gone if that is not reached.

    If `path` is a link, it becomes what that points to.
    """
    target = _target(path)
    # Cut, because a name of 255 bytes is as long as one may be.
    aside = target.with_name(f".{target.name[:50]}.{uuid4().hex[:8]}.tmp")
    with cleaning_up():
        try:
            try:
                yield aside
                aside.rename(target)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            if error.filename in (None, str(aside)):  # a write doesn't know of what
                error.filename = str(path)
            raise


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """A place to write a file that a user named, its folders made as needed; otherwise as `written_aside`.

    Nothing is left behind if the block raises. Raises UserError for what the disk refuses of this file; errors
    of others pass.
    """
    folder = _target(path).parent
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            yield aside
    except BaseException as error:
        with suppress(OSError):  # not empty: another has written there
            for each in made:
                each.rmdir()
        if isinstance(error, OSError) and error.filename in map(str, (path, folder, *made)):
            raise UserError(unwritable(path, error)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write text whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path in it may be no UTF-8


def write_json(path: Path, content: object, indent: int | None = 1) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def link_or_copy(source: Path, target: Path) -> None:
    """Another name for a file that is never changed, or a copy of it where the disk can't give it one.

    Nothing if there is such a file already.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(target) as aside:
        try:
            os.link(source.resolve(), aside)  # of a link it would make another link
        except OSError:
            if (size := source.stat().st_size) > _SAID_BYTES:
                console.print(
                    f"{source}: copying {size / 1e6:,.0f} MB to {target.parent}, where it can't be linked"
                )
            shutil.copy2(source, aside)


def readable_twice(path: Path) -> Path:
    """The path or, of a pipe such as `<(command)` gives, one of its content, for this process and its forks."""
    if not path.is_fifo():
        return path
    check_ends(path)
    copy = os.memfd_create(path.name, 0)  # for processes that are executed, too
    os.write(copy, path.read_bytes())
    return Path(f"/dev/fd/{copy}")


def check_ends(path: Path) -> None:
    """Raise UserError for what may never end: a device, a named pipe to which perhaps nobody writes, our own output.

    To the pipe of `<(command)`, which is /dev/fd/63, somebody does.
    """
    if not path.exists() or path.is_file() or path.is_dir():
        return
    if not path.is_fifo():
        raise UserError(f"{path} is no regular file; give one")
    if path.absolute().parts[1] not in ("dev", "proc"):
        raise UserError(f"{path} is a named pipe; give a file, or <(command)")
    if any(os.path.samestat(path.stat(), os.fstat(number)) for number in (1, 2)):
        raise UserError(f"{path} is what this command writes to; give a file")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Make what the disk refuses in this block a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{unwritable(path, error, 'repair the disk')}, and go on with --resume") from error


@contextmanager
def locked(folder: Path, lock: str, taken: str) -> Iterator[None]:
    """Keep other processes out of a folder, made as needed; nothing is left behind that wasn't there.

    Args:
        folder: the folder.
        lock: name of the file in it that is locked.
        taken: what is said if another process has it.

    Raises:
        UserError: another process has it, or the folder can't be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_held(folder / lock, f"{folder}: {taken}"):
            try:
                yield
            finally:
                (folder / lock).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # not empty: something was written
            for path in made:
                path.rmdir()


@contextmanager
def lock_held(file: Path, taken: str) -> Iterator[None]:
    """Hold a lock on a file, made as needed; raises UserError, which says `taken`, if another process has it."""
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(taken) from None
    except NotImplementedError as error:
        _say_unlocked(file, error)
    except OSError as error:
        if isinstance(error, PermissionError) and file.exists():
            raise UserError(
                f"{taken} (its lock, {file}, is another user's: have it removed if nothing runs there)"
            ) from None
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise UserError(f"{file}: cannot be locked ({error.strerror}); name another folder") from error
        _say_unlocked(file, error)
    try:
        yield
    finally:
        lock.release()


def _say_unlocked(file: Path, error: Exception) -> None:
    console.print(f"{file.parent}: not kept from other processes ({error})")


def check_writable(path: Path) -> None:
    """Raise UserError if `output_file` can't write there; leaves nothing behind."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a directory; name a file")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; name another")
        target = _target(path)
        if split := split_around(target):
            raise UserError(f"{path}: {split} holds the rows of a dataset; name another place")
        if target.exists() and target.name in _KEPT:
            raise UserError(f"{path} is part of a dataset or of a run; name another place")
        folder = next(parent for parent in target.parents if parent.exists())
        with TemporaryFile(dir=folder):
            pass
        longest = os.pathconf(folder, "PC_NAME_MAX")
        if target.is_symlink() or any(
            len(os.fsencode(part)) > longest for part in target.relative_to(folder).parts
        ):
            code = errno.ELOOP if target.is_symlink() else errno.ENAMETOOLONG
            raise OSError(code, os.strerror(code))
        if target.exists():
            target.open("a", encoding="utf-8").close()
    except OSError as error:
        raise UserError(unwritable(path, error)) from None


def drop_lines_after(file: Path, step: int) -> int:
    """Drop the lines of later steps from a file of JSON lines; returns how many are left.

    Lines that can't be read, as a crash leaves them, are dropped, too; one in the middle is said.
    """
    kept, unreadable = [], 0
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            of_line = _step(line)
            if of_line is None:
                unreadable += line.endswith("\n")
            elif of_line <= step:
                kept.append(line)
    if unreadable:
        console.print(f"{file}: {unreadable} lines that can't be read are left out")
    write_text(file, "".join(kept))
    return len(kept)


def _step(line: str) -> int | None:
    """The step of a line of JSON, which ends with it; None if it can't be read."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError):
        return None
    return step if isinstance(step, int) and line.endswith("\n") else None


def without_nonfinite(values: dict[str, Any]) -> dict[str, Any]:
    """The same with NaN and infinity as None, which JSON has no word for."""
    return {
        key: without_nonfinite(value)
        if isinstance(value, dict)
        else (None if isinstance(value, float) and not math.isfinite(value) else value)
        for key, value in values.items()
    }


def _expanded(path: Any) -> Any:
    """With ~ and $NAME as a shell has them, which leaves them alone in files, and after the = of `run_dir=~/a`."""
    if not isinstance(path, str):
        return path
    path = os.path.expandvars(path)
    with suppress(RuntimeError):  # ~name, of no user here
        return str(Path(path).expanduser()) if path.startswith("~") else path
    return path


def usable(path: Path) -> Path:
    """A path that file systems take, with room for what is written below and beside it; else ValueError."""
    if len(os.fsencode(path)) > 1000 or any(len(os.fsencode(part)) > 200 for part in path.parts):
        raise ValueError("a path of more than 1000 bytes, or a name in it of more than 200")
    return path


def _usable_place(place: str) -> str:
    """A path or the URL of a place, such that it can be both made and read."""
    if not place:
        raise ValueError("empty; leave it out for the default")
    usable(Path(place))
    return place


UsablePath = Annotated[Path, BeforeValidator(_expanded), AfterValidator(usable)]
UsablePlace = Annotated[str, BeforeValidator(_expanded), AfterValidator(_usable_place)]
