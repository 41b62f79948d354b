"""Train the runs of a study, one after the other or side by side, then report."""

import json
import os
import shlex
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from cetnet.benchmarks.study.definition import Run, Study, refuse_changed, runs_of
from cetnet.benchmarks.study.jobs import Job, Jobs, Train, failure, last_line, log_file
from cetnet.trainer.console import output
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import locked
from cetnet.trainer.processes.fork_server import start
from cetnet.trainer.processes.launcher import share_cores
from cetnet.trainer.run_folder import LOCK

INTERRUPTED = 5.0  # seconds in which a run ends by itself that was interrupted, too
Check = Callable[[list[Run], Path], object]
"""Raises UserError if one of the runs, of the study in a file, would be refused."""


def run_study(
    path: Path,
    train: Train,
    check: Check | None = None,
    *,
    jobs: int = 1,
    console: Console | None = None,
) -> None:
    """Train every run of the study that is missing, then write its report.

    A run that was cut short is resumed. Interrupted or failed, the study goes on where it was when it is
    started again. If a run is told to stop, the study ends with its exit code, 75.

    Args:
        path: The study file.
        train: What trains one run, a function of a module: the command line has one.
        check: Called with the runs that are missing, if any, before the first one trains.
        jobs: How many runs are trained side by side, sharing the cores. One trains on our terminal, and ends the
            study if it fails; several write logs beside their folders, one that fails lets the others train.
        console: Where progress and the table are printed. Default: the terminal.

    Raises:
        UserError: the study is wrong, another process trains it, a run folder was made with other settings, or a
            run is refused or failed.
    """
    console = console or output
    study = Study.load(path)
    runs = runs_of(study, path)
    refuse_changed(runs, path)
    if jobs > 1:
        os.environ |= share_cores(study.nproc * jobs)
    taken = f"another study trains in it; wait for it, end it, or give {path} another `out`"
    with locked(study.folder, LOCK, taken):
        checked: set[str] = set()
        todo = runs
        while True:
            missing = [run for run in todo if not (run.finished or run.variant in checked)]
            if check and missing:
                console.print(f"{study.name}: checking the runs that are missing, {len(missing)}")
                check(missing, path)
                checked |= {run.variant for run in missing}  # a variant's other seeds have the same model
            if jobs == 1:
                _train_one_by_one(study, path, todo, train, console)
            else:
                _train_side_by_side(study, path, todo, train, jobs, console)
            counts = _further_seeds(study, runs, console) if study.until else None
            if not counts:
                break
            runs = runs_of(study, path, counts)
            todo = [run for run in runs if not run.finished]
        from cetnet.benchmarks.study.report.compose import write_report  # draws plots: heavy

        write_report(study, f"cetnet study {shlex.quote(str(path))}", runs, console)


def _further_seeds(study: Study, runs: Sequence[Run], console: Console) -> dict[str, int]:
    """How many seeds variants are to have next, as `until` says; none if it asks for no more."""
    from cetnet.benchmarks.study.report.comparisons import undecided  # reads predictions: heavy

    assert study.until
    wide, most = undecided(study, runs), study.until.max_seeds
    numbers = Counter(run.variant for run in runs)
    counts: dict[str, int] = {}
    for baseline, variants in study.sections.items():
        for variant in wide.keys() & set(variants):
            if numbers[variant] < most:
                counts[variant] = min(numbers[variant] + 2, most)
                counts[baseline] = max(counts.get(baseline, numbers[baseline]), counts[variant])
    widths = ", ".join(f"{variant} ±{half:.3f}" for variant, half in wide.items())
    console.print(
        f"{study.name}: gains known within ±{study.until.half_width:g} % of {study.until.monitor}: "
        + (f"not yet {widths}" if wide else "all")
        + ("" if counts else f"; no more than {most} seeds" if wide else "")
    )
    return counts


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


def _train_one_by_one(study: Study, path: Path, runs: list[Run], train: Train, console: Console) -> None:
    started = time.monotonic()
    for number, run in enumerate(runs, 1):
        label = f"run {number} of {len(runs)}: {run.variant}, seed {run.seed}"
        refuse_changed([run], path)  # again: somebody else may have begun it since
        if run.finished:
            console.print(f"{label}: finished before")
            continue
        action = "resuming" if run.folder.exists() else "training"
        console.rule(f"{study.name}, {label}: {action} · {_elapsed(started)} elapsed")
        _train(run, train, study.name)


def _train_side_by_side(
    study: Study, path: Path, runs: list[Run], train: Train, jobs: int, console: Console
) -> None:
    started = time.monotonic()
    waiting = deque(
        (f"run {number} of {len(runs)}: {run.variant}, seed {run.seed}", run)
        for number, run in enumerate(runs, 1)
    )
    labels: dict[Path, str] = {}
    failed: list[str] = []
    with Jobs(train, console) as pool:
        while pool.under_way or (_first_ready(waiting) and not pool.told):
            while (ready := _first_ready(waiting)) and not pool.told and len(pool.under_way) < jobs:
                waiting.remove(ready)
                label, run = ready
                refuse_changed([run], path)  # again: somebody else may have begun it since
                if run.finished:
                    console.print(f"{label}: finished before")
                    continue
                action = "resuming" if run.folder.exists() else "training"
                console.print(f"{label}: {action} · {_elapsed(started)} elapsed")
                labels[run.folder] = label
                pool.start(run, label)
            for job in pool.ended(1.0):
                if not pool.told and (mistake := _mistake(job)):
                    failed.append(mistake)
                console.print(f"{labels[job.run.folder]}: {_outcome(job, study.split)}")
    if pool.told:
        console.print(f"{study.name}: told to stop; started again, it goes on from the checkpoints")
        sys.exit(os.EX_TEMPFAIL)
    if failed:
        more = f" (and {len(failed) - 1} more, as said above)" if len(failed) > 1 else ""
        raise UserError(
            f"study {study.name}: {failed[0]}{more}; fix it and start the study again, which goes on from here"
        )


def _first_ready(waiting: Iterable[tuple[str, Run]]) -> tuple[str, Run] | None:
    """The first whose teachers, if it has any, are finished; none of one that failed ever is."""
    return next((each for each in waiting if each[1].ready), None)


def _mistake(job: Job) -> str | None:
    """What is said of a run that didn't finish."""
    if job.run.finished:
        return None
    run, log = job.run, log_file(job.run)
    why = failure(job.process.exitcode) or "no result.json"
    return (
        f"run {run.variant}, seed {run.seed} failed ({why}: {last_line(log)}; its log is {log}, its folder is "
        f"{_kept(run)})"
    )


def _kept(run: Run) -> str:
    """What is left of a run that failed, and where."""
    return f"{run.folder}" + (f", its checkpoints are in {run.checkpoints}" if run.checkpoints else "")


def _outcome(job: Job, split: str) -> str:
    """What became of a run, in a line."""
    took = timedelta(seconds=round(job.seconds))
    if not job.run.finished:
        return f"ended after {took}: {last_line(log_file(job.run))}"
    metrics = json.loads((job.run.folder / "result.json").read_text(encoding="utf-8"))["splits"].get(
        split, {}
    )
    ne = metrics.get("ne/fused")
    return f"finished in {took}" + (f", NE of {split} {ne:.5f}" if ne is not None else "")


def _elapsed(started: float) -> timedelta:
    return timedelta(seconds=round(time.monotonic() - started))


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
        raise UserError(
            f"study {study}: run {run.variant}, seed {run.seed} failed ({failed or 'no result.json'}; its messages "
            f"are above, its folder is {_kept(run)}); fix it and start the study again, which goes on from here"
        )
