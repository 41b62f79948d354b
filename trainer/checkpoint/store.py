"""Where checkpoints are kept: a folder on a disk, or a place in an object store. Both appear whole or not at all."""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from cetnet.trainer.checkpoint.manifest import MANIFEST, sync
from cetnet.trainer.checkpoint.object_path import ObjectPath, Place, parse_place
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import disk_errors
from cetnet.trainer.processes.distributed import on_every_rank, on_main
from cetnet.trainer.run_folder import check_folder

CHECKPOINTS = "checkpoints"
"""Where a run keeps them, unless `checkpoint.path` says otherwise."""


class Disk:
    """Checkpoints in a folder that all ranks see, published by one rename."""

    # What a crash leaves. The folder may be one that the user chose, with files of others.
    _LEFT = re.compile(r"\.(?P<name>step-\d+|best)\.(?P<kind>tmp|old)")

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def steps(self) -> list[Path]:
        """The `step-*` checkpoints from the oldest to the newest; one that was renamed is none."""
        found = self._folder.glob("step-*")
        return sorted(path for path in found if path.name.removeprefix("step-").isdecimal())

    def best(self) -> Path:
        """The checkpoint of the best evaluation."""
        return self._folder / "best"

    def start(self, group: dist.ProcessGroup) -> None:
        """Finish what a crash cut short; every rank calls it, before anything else."""
        on_main(self._finish_what_a_crash_cut_short, group)

    def temporary(self, name: str) -> Path:
        """The folder in which a checkpoint is written: the same on all ranks."""
        return self._folder / f".{name}.tmp"

    def publish(self, temporary: Path, name: str, keep: int, group: dist.ProcessGroup) -> None:
        """Give a checkpoint its name, and then remove all but the newest; every rank calls it."""
        on_main(lambda: self._publish(temporary, name, keep), group)

    def discard(self, temporary: Path) -> None:
        """Remove what is left where a checkpoint was written; every rank calls it."""
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, temporary: Path, name: str, keep: int) -> None:
        final, old = self._folder / name, self._folder / f".{name}.old"
        if os.path.lexists(final):
            final.rename(old)
        temporary.rename(final)
        sync(self._folder)
        with suppress(OSError):
            _delete(old)
        for path in self.steps()[:-keep]:
            _remove(path)

    def _finish_what_a_crash_cut_short(self) -> None:
        """Put back a checkpoint that was set aside for a newer one, and remove remains of others."""
        with disk_errors(self._folder):
            for path in self._folder.glob(".*"):
                if left := self._LEFT.fullmatch(path.name):
                    final = self._folder / left["name"]
                    if left["kind"] == "old" and not final.exists():
                        path.rename(final)
                    else:
                        _delete(path)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that a crash in between leaves no part of it under its name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.tmp")
    with suppress(OSError):
        _delete(hidden)
    checkpoint.rename(hidden)
    _delete(hidden)


def _delete(path: Path) -> None:
    """Delete a checkpoint, or what somebody has put in its place: a link, of which the target stays, or a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class ObjectStore:
    """Checkpoints in an object store, where nothing can be renamed: one exists if its manifest does.

    The manifest is written last, and removed first. No object is replaced by another: a checkpoint's place has
    its name and a number that counts the saves, so that one of the same name is there until the new one is.

    Args:
        folder: where they are.
        aside: a local folder for what a rank writes before it is uploaded.
    """

    _PLACE = re.compile(r"(step-\d+|best)\.\d{6}")

    def __init__(self, folder: ObjectPath, aside: Path | None) -> None:
        self._folder, self._aside = folder, aside
        self._saves = 0

    def steps(self) -> list[ObjectPath]:
        """The `step-*` checkpoints from the oldest to the newest; one that was renamed is none."""
        return [self._folder / place for place in self._newest() if place.startswith("step-")]

    def best(self) -> ObjectPath:
        """The checkpoint of the best evaluation."""
        return self._folder / next((place for place in self._newest() if place.startswith("best.")), "best")

    def start(self, group: dist.ProcessGroup) -> None:
        """Remove what a crash left; every rank calls it, before anything else."""
        shutil.rmtree(self.temporary(""), ignore_errors=True)
        last = [0]
        if dist.get_rank() == 0:
            for left in self.temporary("").parent.glob(".rank-*.tmp"):  # there may have been more ranks
                shutil.rmtree(left, ignore_errors=True)
            places = self._places()
            for place, files in places.items():
                if MANIFEST not in files:
                    self._remove(place, files)
            last = [max((int(place.partition(".")[2]) for place in places), default=0)]
        dist.broadcast_object_list(last, src=0, group=group)
        self._saves = last[0]

    def temporary(self, name: str) -> Path:  # noqa: ARG002
        """The local folder in which a rank writes its part of a checkpoint."""
        assert self._aside is not None
        return self._aside / f".rank-{dist.get_rank()}.tmp"

    def publish(self, temporary: Path, name: str, keep: int, group: dist.ProcessGroup) -> None:
        """Upload a checkpoint, the manifest last, and then remove all but the newest; every rank calls it.

        Raises:
            UserError: on every rank, if one could not upload its files, or not all arrived.
        """
        self._saves += 1  # on every rank alike
        place, is_main = f"{name}.{self._saves:06d}", dist.get_rank() == 0
        try:
            on_every_rank(lambda: self._upload(temporary, place), group)
            on_main(lambda: self._publish(temporary, place), group)
        except (OSError, UserError):
            if is_main:
                with suppress(UserError):  # the store may refuse that too; the next start removes it
                    self._remove(place, self._places().get(place, {}))
            raise
        on_main(lambda: self._prune(keep), group)

    def discard(self, temporary: Path) -> None:
        """Remove what a rank wrote locally; every rank calls it."""
        shutil.rmtree(temporary, ignore_errors=True)

    def _upload(self, temporary: Path, place: str) -> None:
        for file in temporary.iterdir():
            if file.name != MANIFEST:
                (self._folder / place / file.name).upload(file)

    def _publish(self, temporary: Path, place: str) -> None:
        manifest = (temporary / MANIFEST).read_bytes()
        there = self._places().get(place, {})
        for name, file in json.loads(manifest).items():
            if there.get(name) != file["bytes"]:
                raise UserError(
                    f"{self._folder / place}: {name} has {there.get(name, 0)} of {file['bytes']} bytes after its "
                    "upload; look whether all processes reach the same store, and go on with --resume"
                )
        (self._folder / place / MANIFEST).write_bytes(manifest)

    def _prune(self, keep: int) -> None:
        newest = self._newest()
        steps = [place for place in newest if place.startswith("step-")]
        for place, files in self._places().items():
            if MANIFEST in files and (place not in newest or place in steps[:-keep]):
                self._remove(place, files)

    def _remove(self, place: str, files: dict[str, int]) -> None:
        if MANIFEST in files:
            (self._folder / place / MANIFEST).unlink()
        (self._folder / place).remove_all([name for name in files if name != MANIFEST])

    def _newest(self) -> list[str]:
        """The places of whole checkpoints, in order; of several of one name the last."""
        whole = sorted(place for place, files in self._places().items() if MANIFEST in files)
        return list({place.partition(".")[0]: place for place in whole}.values())

    def _places(self) -> dict[str, dict[str, int]]:
        """What is there of each checkpoint, whole or not: the size of each file."""
        places: dict[str, dict[str, int]] = {}
        for name, size in self._folder.sizes().items():
            place, _, file = name.partition("/")
            if self._PLACE.fullmatch(place):
                places.setdefault(place, {})[file] = size
        return places


def open_store(folder: Place, aside: Path | None = None) -> Disk | ObjectStore:
    """What keeps checkpoints in a place; `aside` as ObjectStore has it, for those who write."""
    return Disk(folder) if isinstance(folder, Path) else ObjectStore(folder, aside)


def checkpoint_place(run: Path, path: str | None) -> Place:
    """Where the checkpoints of a run are whose `checkpoint.path` is that; UserError for a URL that can't be used."""
    return run / CHECKPOINTS if path is None else parse_place(path, "checkpoint.path")


def folders_of(config: RunConfig) -> list[Path]:
    """The folders that a run writes to: its own, and that of its checkpoints if it is another one."""
    place = checkpoint_place(config.run_dir, config.checkpoint.path)
    folders = [config.run_dir]
    if (
        config.checkpoint.path is not None
        and isinstance(place, Path)
        and place.resolve() != folders[0].resolve()
    ):
        folders.append(place)
    return folders


def check_place(config: RunConfig, resume: bool) -> None:
    """Check that a run may keep its checkpoints where its configuration says; leaves nothing behind.

    Raises:
        UserError: nothing can be written there, or another run has its checkpoints there and this is no resume.
    """
    place = checkpoint_place(config.run_dir, config.checkpoint.path)
    if isinstance(place, Path):
        check_folder(place, "checkpoint.path")
    else:
        place.check_rights()
    if not resume and open_store(place).steps():
        raise UserError(
            f"checkpoint.path={place} has the checkpoints of a run; continue it with --resume or choose another place"
        )
