"""What a run writes into its folder: configuration, plan, environment, metrics, TensorBoard, result."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from cetnet import __version__
from cetnet.models.schema import Schema
from cetnet.sharding.plan_table import plan_dict, plan_table
from cetnet.sharding.planner import Plan
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import PlainConsole
from cetnet.trainer.dataset_files import drop_dataset_files, take_dataset_files
from cetnet.trainer.files import disk_errors, drop_lines_after, without_nonfinite, write_json
from cetnet.trainer.run_folder import RESULT, TORCHRUN_JOB
from cetnet.trainer.versions import installed_versions
from cetnet.trainer.yaml_files import save_yaml

SLURM = (
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_RESTART_COUNT",  # of starts after the first
)


class RunWriter:
    """Writes the files of a run folder, some of which are its dataset's (`take_dataset_files`); rank 0 only.

    Args:
        config: of the run.
        schema: of its data.
        plan: where its tables are.
        world_size: number of processes.
        resumed: from a checkpoint; if not, what an earlier start took from other data is dropped.

    Raises:
        UserError: by every method: the disk is full, or broken.
    """

    def __init__(
        self, config: RunConfig, schema: Schema, plan: Plan, world_size: int, resumed: bool = False
    ) -> None:
        self.path = config.run_dir
        aside = self.path / ".start"  # a resumed run's files are replaced by whole ones
        try:
            with disk_errors(self.path):
                # Of one that was killed: what is linked in it must not be written to.
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                save_yaml(aside / "config.yaml", config)
                save_yaml(aside / "schema.yaml", schema)
                with (aside / "plan.txt").open("w", encoding="utf-8") as file:
                    PlainConsole(file=file, width=140).print(plan_table(plan, world_size))
                write_json(aside / "plan.json", plan_dict(plan, world_size))
                write_json(aside / "environment.json", _environment(world_size))
                take_dataset_files(config.data.path, aside, self.path)
                if not resumed:
                    drop_dataset_files(self.path)
                for path in list(aside.iterdir()):
                    if path.is_dir() and (there := self.path / path.name).exists():
                        there.rename(aside / f"{path.name}.before")
                    path.rename(self.path / path.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._metrics = self.path / "metrics.jsonl"
        self._board: SummaryWriter | None = None

    def truncate_metrics(self, step: int) -> None:
        """Forget what was written after a checkpoint's step, before training goes on from it."""
        shutil.rmtree(self.path / "predictions", ignore_errors=True)
        with disk_errors(self.path):
            if self._metrics.exists():
                drop_lines_after(self._metrics, step)
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append to metrics.jsonl and, for numbers, to TensorBoard."""
        prefix = "" if kind == "train" else f"{values.get('split', kind)}/"
        with disk_errors(self.path):
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "step": step} | without_nonfinite(values)) + "\n")
            if self._board is None:
                self._board = SummaryWriter(str(self.path / "tensorboard"))
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(prefix + key, value, step)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, the mark of a finished run."""
        with disk_errors(self.path):
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
        "versions": {"cetnet": __version__} | installed_versions(),
        "commit": _commit(),
        "world_size": world_size,
        "torchx": {key: value for key, value in os.environ.items() if key.startswith("TORCHX_")},
        "torchrun": {
            key: os.environ[key] for key in (TORCHRUN_JOB, "TORCHELASTIC_RESTART_COUNT") if key in os.environ
        },
        "slurm": {key: os.environ[key] for key in SLURM if key in os.environ},
    }


def _commit() -> str | None:
    """Of a checkout the commit; in a container, where neither git nor history is, what its build was told."""
    if commit := os.environ.get("CETNET_COMMIT"):
        return commit
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed; a repository around that would be another's
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(describe, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return git.stdout.strip() or None
