"""Runs as jobs of a scheduler, through TorchX: asked for, remembered beside their folders, looked at."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torchx.runner import Runner
from torchx.runner.config import apply
from torchx.specs import NONE, AppDryRunInfo, AppState, CfgVal, InvalidRunConfigException, runopts

from cetnet.benchmarks.study.definition import Run
from cetnet.launch.components import train
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import write_text


@dataclass(frozen=True)
class Resources:
    """What each job gets; as in `cetnet.launch.components.train`, or None for the study's own."""

    shape: str | None
    cpu: int | None
    gpu: int
    memory: int | None
    mounts: str
    image: str
    retries: int
    env: dict[str, str]


class State(NamedTuple):
    """How a job does.

    Attributes:
        handle: TorchX's name of the job.
        text: in words.
        ended: whether it has; a job is under way while nobody knows.
        succeeded: whether it has, with exit code 0.
        unknown: whether the scheduler doesn't say.
    """

    handle: str
    text: str
    ended: bool = False
    succeeded: bool = False
    unknown: bool = False


class Cluster:
    """A scheduler, and what jobs get there.

    Args:
        runner: TorchX's.
        scheduler: TorchX's name of it; its options in `.torchxconfig` hold where `options` has none.
        options: `key=value,...` for the scheduler.
        resources: Of each job.

    Raises:
        UserError: the scheduler, or one of its options, is unknown.
    """

    def __init__(self, runner: Runner, scheduler: str, options: str, resources: Resources) -> None:
        self.scheduler, self.resources, self._runner = scheduler, resources, runner
        # Slurm's jobs inherit it: they find this environment's torchrun, activated or not.
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        try:
            known = runner.scheduler_run_opts(scheduler)
        except KeyError:
            names = ", ".join(runner.scheduler_backends())
            raise UserError(f"scheduler {scheduler!r} is none of {names}") from None
        self._options = _parse(scheduler, options, known)

    def request(
        self, name: str, run: Run, port: int, *options: str, env: dict[str, str] | None = None
    ) -> AppDryRunInfo[Any]:
        """What would be submitted for a run.

        Args:
            name: Of the job; what schedulers don't take in names is replaced.
            run: Of a study.
            port: Where its nodes meet; jobs that share a node need one each.
            options: Of `cetnet train`, beside those of the run.
            env: Environment, beside that of the resources.

        Raises:
            UserError: TorchX does not take it.
        """
        resources = self.resources
        shape = resources.shape or f"1x{run.nproc}"
        try:
            app = train(
                *run.overrides,
                *options,
                config=str(run.base),
                j=shape,
                cpu=resources.cpu or int(shape.rpartition("x")[2]),
                gpu=resources.gpu,
                memMB=resources.memory or -1,
                max_retries=resources.retries,
                env={**resources.env, **(env or {})},
                mounts=resources.mounts.split(",") if resources.mounts else None,
                image=resources.image or "cetnet:latest",
                # What Kubernetes takes for a name, with what TorchX adds to it.
                name=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
                rdzv_port=port,
            )
            return self._runner.dryrun(app, self.scheduler, self._options)
        except (InvalidRunConfigException, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.scheduler}: {_one_line(error)}") from None

    def submit(self, request: AppDryRunInfo[Any], run: Run, label: str) -> str:
        """Submit the job of a run, and remember it beside the run's folder; returns its handle.

        Raises:
            UserError: the scheduler does not take it.
        """
        run.write_settings()
        try:
            handle = self._runner.schedule(request)
        except Exception as error:  # whatever a scheduler's client raises
            if not run.folder.exists():
                run.settings_file.unlink()
            raise UserError(f"{self.scheduler} did not take the job of {label}: {_one_line(error)}") from None
        write_text(_job_file(run), f"{handle}\n")
        return handle

    def state(self, run: Run) -> State | None:
        """How the job does that a run was last submitted as; None if it was not."""
        file = _job_file(run)
        if not file.exists():
            return None
        handle = file.read_text(encoding="utf-8").strip()
        try:
            status = self._runner.status(handle)
        except Exception as error:  # whatever a scheduler's client raises
            text = f"whose state is unknown ({_one_line(error)}); if it has ended, delete {file}"
            return State(handle, text, unknown=True)
        if status is None:
            return State(handle, "forgotten", ended=True)
        text, succeeded = status.state.name.lower(), status.state == AppState.SUCCEEDED
        if status.msg not in ("", NONE, status.state.name) and not succeeded:
            text += f" ({status.msg})"  # such as TIMEOUT, of what TorchX calls failed
        return State(handle, text, status.is_terminal(), succeeded)

    def cancel(self, handle: str) -> None:
        """End a job. Raises UserError if that can't be asked for."""
        try:
            self._runner.cancel(handle)
        except Exception as error:  # whatever a scheduler's client raises
            raise UserError(f"{handle}: cannot be cancelled: {_one_line(error)}") from None


def _parse(scheduler: str, text: str, known: runopts) -> dict[str, CfgVal]:
    """Options of a scheduler, which TorchX would pass over if it doesn't know them."""
    names = [name for name, _ in known]
    for part in filter(None, text.split(",")):
        if (name := part.partition("=")[0]) not in names:
            raise UserError(f"-cfg {part}: {scheduler} has no option {name!r}, but {', '.join(names)}")
    options = known.cfg_from_str(text)
    apply(scheduler, options)  # .torchxconfig has what is left out
    return options


def _job_file(run: Run) -> Path:
    return run.folder.with_name(f"{run.folder.name}.job")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
