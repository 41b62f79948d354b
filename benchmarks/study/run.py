"""Train the runs of a study one after the other, then report."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from cetnet.benchmarks.study.definition import Run, Study, refuse_changed, runs_of
from cetnet.trainer.console import output
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import locked
from cetnet.trainer.processes.fork_server import start
from cetnet.trainer.processes.signals import SIGNALS
from cetnet.trainer.run_folder import LOCK

INTERRUPTED = 5.0  # seconds in which a run ends by itself that was interrupted, too
Train = Callable[[list[str]], object]
"""Trains a run, in a process of its own, from the arguments of `cetnet`; it ends with their exit code."""
Check = Callable[[list[Run], Path], object]
"""Raises UserError if one of the runs, of the study in a file, would be refused."""


def run_study(
    path: Path, train: Train, check: Check | None = None, *, console: Console | None = None
) -> None:
    """Train every run of the study that is missing, one after the other, then write its report.

    A run that was cut short is resumed. Interrupted or failed, the study goes on where it was when it is
    started again. If the run is told to stop, the study ends with its exit code, 75.

    Args:
        path: The study file.
        train: What trains one run, a function of a module: the command line has one.
        check: Called with the runs that are missing, if any, before the first one trains.
        console: Where progress and the table are printed. Default: the terminal.

    Raises:
        UserError: the study is wrong, another process trains it, a run folder was made with other settings, or a
            run is refused or failed.
    """
    console = console or output
    study = Study.load(path)
    runs = runs_of(study, path)
    refuse_changed(runs, path)
    taken = f"another study trains in it; wait for it, end it, or give {path} another `out`"
    with locked(study.folder, LOCK, taken):
        if check and (missing := [run for run in runs if not run.finished]):
            console.print(f"{study.name}: checking the runs that are missing, {len(missing)}")
            check(missing, path)
        _train_missing(study, path, runs, train, console)
        from cetnet.benchmarks.study.report.compose import write_report  # draws plots: heavy

        write_report(study, f"cetnet study {shlex.quote(str(path))}", runs, console)


def report_study(path: Path, *, console: Console | None = None) -> None:
    """Write the report of what is finished of a study; raises UserError if nothing is, or a run was changed."""
    study = Study.load(path)
    runs = runs_of(study, path)
    refuse_changed(runs, path)
    if not any(run.finished for run in runs):
        raise UserError(
            f"study {study.name}: none of its {len(runs)} runs is finished, first {runs[0].folder}; "
            "run the study to train them"
        )
    from cetnet.benchmarks.study.report.compose import write_report  # draws plots: heavy

    write_report(study, f"cetnet study {shlex.quote(str(path))}", runs, console or output)


def _train_missing(study: Study, path: Path, runs: list[Run], train: Train, console: Console) -> None:
    started = time.monotonic()
    for number, run in enumerate(runs, 1):
        label = f"run {number} of {len(runs)}: {run.variant}, seed {run.seed}"
        refuse_changed([run], path)  # again: somebody else may have begun it since
        if run.finished:
            console.print(f"{label}: finished before")
            continue
        elapsed = timedelta(seconds=round(time.monotonic() - started))
        action = "resuming" if run.folder.exists() else "training"
        console.rule(f"{study.name}, {label}: {action} · {elapsed} elapsed")
        _train(run, train, study.name)


def _train(run: Run, train: Train, study: str) -> None:
    """Run the child on our own terminal; raises UserError if it does not leave a finished run."""
    resume = ["--resume"] if run.folder.exists() else []
    run.write_settings()
    child = start(train, ["train", *run.arguments, *resume], run.nproc)
    try:
        child.join()
    except KeyboardInterrupt:
        child.join(INTERRUPTED)  # the terminal sent it to the child as well
        if child.exitcode is None and child.pid:
            os.kill(child.pid, signal.SIGINT)
        child.join()
        raise
    failed = failure(child.exitcode)
    if failed or not run.finished:
        kept = f", its checkpoints are in {run.checkpoints}" if run.checkpoints else ""
        raise UserError(
            f"study {study}: run {run.variant}, seed {run.seed} failed ({failed or 'no result.json'}; its messages "
            f"are above, its folder is {run.folder}{kept}); fix it and start the study again, which goes on from here"
        )


def failure(code: int | None) -> str | None:
    """How a process failed, from its exit code; None if it didn't. Ends this one if that was told to stop."""
    if code == os.EX_TEMPFAIL:  # and has said so
        sys.exit(code)
    # Told to stop before it could have said so.
    if code and (-code if code < 0 else code - 128) in (*SIGNALS, signal.SIGHUP):
        sys.exit(128 - code if code < 0 else code)
    if not code:
        return None
    guess = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{guess}" if code < 0 else f"exit code {code}"
