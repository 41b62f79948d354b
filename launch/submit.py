"""A study as one job per run, submitted through TorchX."""

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from torchx.runner import Runner, get_runner
from torchx.runner.config import apply
from torchx.specs import AppDef, CfgVal, InvalidRunConfigException, runopts

from cetnet.benchmarks.study.definition import Run, Study, refuse_changed, runs_of
from cetnet.launch.components import train
from cetnet.trainer.console import output
from cetnet.trainer.errors import UserError


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


def submit_study(path: Path, scheduler: str, options: str, resources: Resources, *, dryrun: bool) -> None:
    """Submit every run of a study that is neither finished nor under way.

    A run's job is remembered beside its folder, in `seed<k>.job`, so that none is submitted twice.

    Args:
        path: The study file.
        scheduler: TorchX's name of it; its options in `.torchxconfig` hold where `options` has none.
        options: `key=value,...` for the scheduler.
        resources: Of each job.
        dryrun: Show what would be submitted.

    Raises:
        UserError: the study or an option is wrong, or a run folder was made with other settings.
    """
    if scheduler == "local_cwd":
        raise UserError(f"local_cwd ends its jobs with this program; use `cetnet study {path}` here")
    study = Study.load(path)
    runs = runs_of(study, path)
    refuse_changed(runs, path)
    # Slurm's jobs inherit it: they find this environment's torchrun, activated or not.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with get_runner() as runner:
        try:
            known_options = runner.scheduler_run_opts(scheduler)
        except KeyError:
            known = ", ".join(name for name in runner.scheduler_backends() if name != "local_cwd")
            raise UserError(f"scheduler {scheduler!r} is none of {known}") from None
        scheduler_options = _parse(scheduler, options, known_options)
        submitted = 0
        for number, run in enumerate(runs):
            label = f"{run.variant}, seed {run.seed}"
            if run.finished:
                output.print(f"{label}: finished")
                continue
            if state := _under_way(runner, run):
                output.print(f"{label}: {state}")
                continue
            if not (run.ready or dryrun):
                output.print(f"{label}: waits for its teacher; submit the study again when that is finished")
                continue
            try:
                app = _app(study, run, resources, port=29500 + number % 1000)
                request = runner.dryrun(app, scheduler, scheduler_options)
            except (InvalidRunConfigException, KeyError, TypeError, ValueError) as error:
                raise UserError(f"{scheduler}: {_one_line(error)}") from None
            submitted += 1
            if dryrun:
                output.rule(label)
                print(request)
                continue
            run.write_settings()
            try:
                handle = runner.schedule(request)
            except Exception as error:  # whatever a scheduler's client raises
                if not run.folder.exists():
                    run.settings_file.unlink()
                raise UserError(f"{scheduler} did not take the job of {label}: {_one_line(error)}") from None
            _job_file(run).write_text(f"{handle}\n", encoding="utf-8")
            output.print(f"{label}: {handle}")
    if submitted and not dryrun:
        output.print(
            f"{submitted} of {len(runs)} runs submitted. When they are finished: "
            f"cetnet study {shlex.quote(str(path))} --report-only",
        )


def _parse(scheduler: str, text: str, known: runopts) -> dict[str, CfgVal]:
    """Options of a scheduler, which TorchX would pass over if it doesn't know them."""
    names = [name for name, _ in known]
    for part in filter(None, text.split(",")):
        if (name := part.partition("=")[0]) not in names:
            raise UserError(f"-cfg {part}: {scheduler} has no option {name!r}, but {', '.join(names)}")
    options = known.cfg_from_str(text)
    apply(scheduler, options)  # .torchxconfig has what is left out
    return options


def _app(study: Study, run: Run, resources: Resources, port: int) -> AppDef:
    # What Kubernetes takes for a name, with what TorchX adds to it.
    name = re.sub(r"[^a-z0-9]+", "-", f"{study.name}-{run.variant}".lower())[:30].strip("-")
    shape = resources.shape or f"1x{run.nproc}"
    return train(
        *run.overrides,
        config=str(run.base),
        j=shape,
        cpu=resources.cpu or int(shape.rpartition("x")[2]),
        gpu=resources.gpu,
        memMB=resources.memory or -1,
        max_retries=resources.retries,
        env=dict(resources.env),
        mounts=resources.mounts.split(",") if resources.mounts else None,
        image=resources.image or "cetnet:latest",
        name=f"{name}-{run.seed}",
        rdzv_port=port,  # jobs of several nodes may share one
    )


def _job_file(run: Run) -> Path:
    return run.folder.with_name(f"{run.folder.name}.job")


def _under_way(runner: Runner, run: Run) -> str | None:
    """What to say of the job that the run was submitted as, unless it has ended."""
    file = _job_file(run)
    if not file.exists():
        return None
    handle = file.read_text(encoding="utf-8").strip()
    try:
        status = runner.status(handle)
    except Exception as error:  # whatever a scheduler's client raises
        return f"{handle}, whose state is unknown ({_one_line(error)}); if it has ended, delete {file}"
    if status is None or status.is_terminal():
        return None
    return f"{handle}, {status.state.name.lower()}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
