"""The run folder: everything needed to understand and repeat a run."""

import fcntl
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from cetnet.models.schema import Schema
from cetnet.sharding.plan_table import plan_dict, plan_table
from cetnet.sharding.planner import Plan
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.config import RunConfig, load_config
from cetnet.trainer.console import console
from cetnet.trainer.data.dataset import load_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import drop_lines_after, without_nonfinite, write_json, written
from cetnet.trainer.versions import installed_versions
from cetnet.trainer.yaml_files import save_yaml

RESULT = "result.json"
LOCK = ".lock"
SLURM = (
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_RESTART_COUNT",  # of starts after the first
)

TORCHRUN_JOB = "TORCHELASTIC_RUN_ID"


def prepare_run(config: RunConfig, resume: bool) -> None:
    """Check that a run may start in its folder; changes nothing.

    Raises:
        UserError: the folder can't be made, is taken and this is no resume, is finished or was another run's.
    """
    folder = config.run_dir
    check_folder(folder, "run_dir")
    if not folder.exists() or not any(path.name != LOCK for path in folder.iterdir()):
        return
    if not resume:
        raise UserError(f"{folder} exists; continue it with --resume or choose another run_dir=...")
    if (folder / RESULT).exists():
        raise UserError(f"{folder}: this run is finished; choose another run_dir=... to train again")
    if (folder / "config.yaml").exists():
        before = load_config(folder / "config.yaml")
        check_same_run(before, config, folder)
        if before.checkpoint.path != config.checkpoint.path:
            raise UserError(
                f"{folder}: cannot resume, checkpoint.path was {before.checkpoint.path!r} and is now "
                f"{config.checkpoint.path!r}; use the same or, if the checkpoints were moved, change it in its "
                "config.yaml"
            )


def check_same_run(before: RunConfig, now: RunConfig, place: Place) -> None:
    """Raise UserError if a configuration can't go on with what another one began in a place."""
    if changed := first_difference(_what_is_learned(before), _what_is_learned(now)):
        raise UserError(f"{place}: cannot resume, {changed}; use the same configuration or another run_dir")


def check_folder(folder: Path, key: str) -> None:
    """Raise UserError if a folder, named by a key of the configuration, can't be made or written to."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"{folder}: {place} is not a directory one may write to; choose another {key}=...")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that a run writes to; nothing is left behind that wasn't there.

    Raises:
        UserError: one is in it, or the folder can't be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = _lock(folder)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.close()
        with suppress(OSError):  # not empty: the run has begun
            for path in made:
                path.rmdir()


def _lock(folder: Path) -> TextIO:
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            f"{folder}: another process trains in it, here or on another host; wait for it, end it, or choose "
            "another run_dir=..."
        ) from None
    except OSError as error:  # a file system without locks
        console.print(f"{folder}: not kept from other processes ({error.strerror})", highlight=False)
    # Whoever had the lock before may have removed the file since it was opened here.
    return lock if os.fstat(lock.fileno()).st_nlink else _lock(folder)


def restarted(folder: Path) -> bool:
    """Whether torchrun has started this run before: the job's id, if it has one, is that in `environment.json`.

    Its count of restarts would not do: a node that joins counts anew, and a job that was refused an existing
    folder would be let in by its first restart.
    """
    job = os.environ.get(TORCHRUN_JOB, "none")  # "none": what torchrun calls a job without an --rdzv-id
    try:
        environment = json.loads((folder / "environment.json").read_text())
        return job != "none" and environment["torchrun"].get(TORCHRUN_JOB) == job
    except (OSError, ValueError, KeyError):
        return False


def load_run(folder: Path) -> tuple[RunConfig, Schema]:
    """Configuration and schema of a run; raises UserError if this is no run folder."""
    if not (folder / "config.yaml").exists():
        raise UserError(
            f"{folder}: no config.yaml here; name the folder of a run (the run_dir of `cetnet train`)"
        )
    return load_config(folder / "config.yaml"), load_schema(folder)


class RunFolder:
    """Writes the folder's files; rank 0 only.

    Raises:
        UserError: by every method: the disk is full, or broken.
    """

    def __init__(self, config: RunConfig, schema: Schema, plan: Plan, world_size: int) -> None:
        self.path = config.run_dir
        aside = self.path / ".start"  # a resumed run's files are replaced by whole ones
        try:
            with written(self.path):
                aside.mkdir(parents=True, exist_ok=True)
                save_yaml(aside / "config.yaml", config)
                save_yaml(aside / "schema.yaml", schema)
                with (aside / "plan.txt").open("w") as file:
                    Console(file=file, width=140).print(plan_table(plan, world_size))
                write_json(aside / "plan.json", plan_dict(plan, world_size))
                write_json(aside / "environment.json", _environment(world_size))
                for path in aside.iterdir():
                    path.rename(self.path / path.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._metrics = self.path / "metrics.jsonl"
        self._board: SummaryWriter | None = None

    def truncate_metrics(self, step: int) -> None:
        """Forget what was written after a checkpoint's step, before training goes on from it."""
        shutil.rmtree(self.path / "predictions", ignore_errors=True)
        with written(self.path):
            if self._metrics.exists():
                drop_lines_after(self._metrics, step)
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append to metrics.jsonl and, for numbers, to TensorBoard."""
        prefix = "" if kind == "train" else f"{values.get('split', kind)}/"
        with written(self.path):
            with self._metrics.open("a") as file:
                file.write(json.dumps({"kind": kind, "step": step} | without_nonfinite(values)) + "\n")
            if self._board is None:
                self._board = SummaryWriter(str(self.path / "tensorboard"))
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(prefix + key, value, step)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, the mark of a finished run."""
        with written(self.path):
            if self._board is not None:
                self._board.close()
            write_json(self.path / RESULT, without_nonfinite(result))


def _environment(world_size: int) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "directory": str(Path.cwd()),
        "host": platform.node(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": installed_versions(),
        "commit": _commit(),
        "world_size": world_size,
        "torchx": {key: value for key, value in os.environ.items() if key.startswith("TORCHX_")},
        "torchrun": {
            key: os.environ[key] for key in (TORCHRUN_JOB, "TORCHELASTIC_RESTART_COUNT") if key in os.environ
        },
        "slurm": {key: os.environ[key] for key in SLURM if key in os.environ},
    }


def _commit() -> str | None:
    """The program's version; in a container, where neither git nor history is, what its build was told."""
    if commit := os.environ.get("CETNET_COMMIT"):
        return commit
    describe = ["git", "-C", str(Path(__file__).parent.parent), "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(describe, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return git.stdout.strip() or None


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
