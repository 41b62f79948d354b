"""The run folder: everything needed to understand and repeat a run."""

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from cetnet.models.schema import Schema
from cetnet.trainer.config import RunConfig, load_config
from cetnet.trainer.data.data_files import split_around
from cetnet.trainer.data.dataset import load_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import locked

RESULT = "result.json"
_TEACHERS = "teachers"
LOCK = ".lock"

TORCHRUN_JOB = "TORCHELASTIC_RUN_ID"


def check_free(folder: Path, resume: bool) -> None:
    """Raise UserError if a run's folder can't be made, is taken and this is no resume, or is finished."""
    check_folder(folder, "run_dir")
    if not folder.exists() or not any(path.name != LOCK for path in folder.iterdir()):
        return
    if not resume:
        raise UserError(f"{folder} exists; continue it with --resume or choose another run_dir=...")
    if (folder / RESULT).exists():
        raise UserError(f"{folder}: this run is finished; choose another run_dir=... to train again")


def check_resumable(config: RunConfig) -> None:
    """Raise UserError if there is a run in the folder, and it is another one."""
    folder = config.run_dir
    if (folder / "config.yaml").exists():
        before = load_config(folder / "config.yaml")
        check_same_run(before, config, folder)
        was, now = _as_it_began(folder, before.checkpoint.path), config.checkpoint.path
        if was != now and (was is None or now is None or Path(was).resolve() != Path(now).resolve()):
            raise UserError(
                f"{folder}: cannot resume, checkpoint.path was {was!r} and is now {now!r}, from {Path.cwd()}; use "
                "the same or, if the checkpoints were moved, change it in its config.yaml"
            )


def check_same_run(before: RunConfig, now: RunConfig, place: object) -> None:
    """Raise UserError if a configuration can't go on with what another one began in a place."""
    if changed := first_difference(_what_is_learned(before), _what_is_learned(now)):
        raise UserError(f"{place}: cannot resume, {changed}; use the same configuration or another run_dir")


def check_folder(folder: Path, key: str) -> None:
    """Raise UserError if a folder, named by a key of the configuration, can't be made or written to.

    Nor may it be among the files of a dataset.
    """
    if inside := split_around(folder / "run"):
        raise UserError(f"{folder}: {inside} holds the rows of a dataset; choose another {key}=...")
    # A link to nothing is there: no folder can be made in its place.
    place = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    try:
        with TemporaryFile(dir=place):  # rights alone don't tell: root has them in /proc
            return
    except OSError as error:
        why = f" ({error.strerror})" if place.is_dir() else ""
    raise UserError(f"{folder}: {place} is not a directory one may write to{why}; choose another {key}=...")


def locked_run(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes out of a folder that a run writes to; see `locked`."""
    taken = "another process trains in it, here or on another host; wait for it, end it, or use another run_dir=..."
    return locked(folder, LOCK, taken)


class TeacherFiles(NamedTuple):
    """What a run keeps of a teacher: its logits by row number, and of what model and data they are, if complete."""

    logits: Path
    record: Path


def teacher_files(folder: Path, number: int) -> TeacherFiles:
    """Those of the run in a folder of its teacher of a number, from 1."""
    return TeacherFiles(*(folder / _TEACHERS / f"{number}.{kind}" for kind in ("npy", "json")))


def restarted(folder: Path) -> bool:
    """Whether torchrun has started this run before: the job's id, if it has one, is that in `environment.json`.

    Its count of restarts would not do: a node that joins counts anew, and a job that was refused an existing
    folder would be let in by its first restart.
    """
    job = os.environ.get(TORCHRUN_JOB, "none")  # "none": what torchrun calls a job without an --rdzv-id
    try:
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        return job != "none" and environment["torchrun"].get(TORCHRUN_JOB) == job
    except (OSError, ValueError, KeyError):
        return False


def load_run(folder: Path, resolve: bool = True) -> tuple[RunConfig, Schema]:
    """Configuration, its components resolved or not, and schema of a run; UserError if this is no run folder."""
    for name in ("config.yaml", "schema.yaml"):
        if not (folder / name).exists():
            raise UserError(
                f"{folder}: no {name} here; name the folder of a run (the run_dir of `cetnet train`)"
            )
    config = load_config(folder / "config.yaml", resolve=resolve)
    checkpoint = config.checkpoint.model_copy(update={"path": _as_it_began(folder, config.checkpoint.path)})
    return config.model_copy(update={"checkpoint": checkpoint}), load_schema(folder)


def _as_it_began(folder: Path, place: str | None) -> str | None:
    """A run's `checkpoint.path`, which is relative to the directory that it was started in, if that still has it."""
    if place is None or "://" in place:
        return place
    try:
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        there = Path(environment["directory"], place)
        return str(there) if there.is_dir() else place
    except (OSError, ValueError, LookupError, TypeError):
        return place


def _what_is_learned(config: RunConfig) -> dict[str, Any]:
    """The keys that decide the numbers; the others may change between a run and its resumption."""
    return config.model_dump(
        mode="json",
        exclude={
            "run_dir": True,
            "checkpoint": True,
            "data": {"path", "prefetch", "threads", "bad_rows", "bad_rows_limit"},
            "training": {"device", "compile", "log_every", "timeout_minutes", "nonfinite"},
            "sharding": {"constraints", "reserve", "cluster"},
            "evaluation": {"splits", "batch_size"},
        },
    )


def first_difference(before: Any, now: Any, key: str = "") -> str | None:
    """The first key, or place in a list, where two configurations or schemas differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            if difference := first_difference(before.get(name), now.get(name), f"{key}.{name}".lstrip(".")):
                return difference
        return None
    if isinstance(before, list) and isinstance(now, list):
        for place, (one, other) in enumerate(zip(before, now, strict=False)):
            if difference := first_difference(one, other, f"{key}[{place}]"):
                return difference
        return None if len(before) == len(now) else f"{key} had {len(before)} entries and has {len(now)} now"
    return None if before == now else f"{key} was {before!r} and is now {now!r}"
