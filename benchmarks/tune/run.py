"""Train the trials of a study's variants, halving them at every rung, and write down what was chosen."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from cetnet.benchmarks.study.definition import Run, Study, refuse_changed
from cetnet.benchmarks.study.jobs import Job, Jobs, Train, failure, last_line, log_file, told_to_stop
from cetnet.benchmarks.tune.check import Fields, spaces_of
from cetnet.benchmarks.tune.journal import JOURNAL
from cetnet.benchmarks.tune.search import Search, Task
from cetnet.benchmarks.tune.trials import TUNE
from cetnet.trainer.console import output
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import locked
from cetnet.trainer.processes.launcher import share_cores
from cetnet.trainer.run_folder import LOCK

_LOOK = 0.5  # seconds between looks at how far the trials are


def tune_study(
    path: Path,
    train: Train,
    fields: Fields,
    check: Callable[[list[Run], Path], object] | None = None,
    *,
    jobs: int = 1,
    report_only: bool = False,
    console: Console | None = None,
) -> None:
    """Choose settings for every variant of a study that has a `tune` section; what is done is not done again.

    Args:
        path: The study file.
        train: What trains one run, as for `run_study`.
        fields: What keys the components have, asked for if a pattern needs it.
        check: Called with runs of every choice and end of a range, before the first one trains.
        jobs: How many runs are trained side by side, sharing the cores.
        report_only: Train nothing, report how far it is.
        console: Where progress and the table are printed. Default: the terminal.

    Raises:
        UserError: the study or its `tune` is wrong, another process tunes it, the folder was made with other
            settings, or runs failed that no setting is to blame for.
        SystemExit: told to stop; every run has written a checkpoint: code 75.
    """
    console = console or output
    study = Study.load(path)
    folder = study.folder / TUNE
    if jobs > 1:
        os.environ |= share_cores(study.nproc * jobs)
    if report_only and not (folder / JOURNAL).exists():
        raise UserError(f"{folder}: nothing is tuned yet; leave --report-only out")
    taken = f"another process tunes in it; wait for it, end it, or give {path} another `out`"
    with locked(folder, LOCK, taken):
        searches = [Search(trials, space, folder) for trials, space in spaces_of(study, path, fields)]
        if not report_only:
            if check and not any(search.known for search in searches):
                runs = [run for search in searches for run in search.representative_runs()]
                console.print(
                    f"{study.name}: checking what the settings make of the variants, {len(runs)} runs"
                )
                check(runs, path)
            _train_all(study, path, searches, train, jobs, console)
        from cetnet.benchmarks.tune.report import write_results  # draws plots: heavy

        write_results(study, path, searches, console)


def _train_all(
    study: Study, path: Path, searches: Sequence[Search], train: Train, jobs: int, console: Console
) -> None:
    with Jobs(train, console) as pool:
        while not pool.told:
            under_way = {job.run.folder for job in pool.under_way}
            todo = {
                task.run.folder: (search, task)
                for search in searches
                for task in search.tasks(under_way, console)
            }
            if not todo and not under_way:
                break
            for folder, (_, task) in todo.items():
                if folder not in under_way and len(pool.under_way) < jobs and not pool.told:
                    refuse_changed([task.run], path)
                    pool.start(task.run, f"{task.run.variant}, seed {task.run.seed}")
            # Those at their rung write a checkpoint, in case they go on.
            pool.stop([job for job in pool.under_way if job.run.folder not in todo and not job.run.finished])
            for job in pool.ended(_LOOK):
                if job.run.folder in todo and not pool.told and (mistake := _mistake(job)):
                    _take_failure(*todo[job.run.folder], job, mistake, console)
    if pool.told:
        console.print(f"{study.name}: told to stop; started again, it goes on from the checkpoints")
        sys.exit(os.EX_TEMPFAIL)


def _mistake(job: Job) -> str | None:
    """What is said of a run that ended before its rung, unless it was told to."""
    if job.run.finished or told_to_stop(job.process.exitcode):
        return None
    return f"{failure(job.process.exitcode) or 'no result.json'}: {last_line(log_file(job.run))}"


def _take_failure(search: Search, task: Task, job: Job, mistake: str, console: Console) -> None:
    """Leave the trial out; raises UserError if no setting is to blame."""
    as_it_stands, killed = not task.trial.values, (job.process.exitcode or 0) < 0
    if as_it_stands or killed:
        raise UserError(
            f"{task.trial.label}, seed {job.run.seed} failed ({mistake}; its log is {log_file(job.run)}); fix it and "
            "start the tuning again, which goes on from here"
        )
    search.fail(task.trial, mistake)
    console.print(f"{task.trial.label}: failed, and is left out ({mistake}; its log is {log_file(job.run)})")
