"""Train the trials of a study's variants, halving them at every rung, and write down what was chosen."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar

from rich.console import Console

from cetnet.benchmarks.study.definition import Run, Study, refuse_changed
from cetnet.benchmarks.tune.check import Fields, spaces_of
from cetnet.benchmarks.tune.journal import JOURNAL
from cetnet.benchmarks.tune.search import Search, Task
from cetnet.benchmarks.tune.trials import TUNE
from cetnet.trainer.console import output
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import locked
from cetnet.trainer.run_folder import LOCK

_LOOK = 1.0  # seconds in which a pool may look after its jobs


class Job(Protocol):
    """A run under way in a pool."""

    @property
    def run(self) -> Run:
        """Which."""
        ...

    @property
    def mistake(self) -> str | None:
        """Once it has ended, why it did not finish; None if it did, was told to stop, or is to be asked again."""
        ...

    @property
    def killed(self) -> bool:
        """Whether no setting is to blame for that."""
        ...


J = TypeVar("J", bound=Job)


class Pool(Protocol[J]):
    """Trains runs side by side: `cetnet.benchmarks.study.jobs.Jobs` as processes, `cetnet.launch.trials` as jobs."""

    @property
    def told(self) -> bool:
        """Whether it was told to stop."""
        ...

    @property
    def under_way(self) -> Sequence[J]:
        """Those that have not ended."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def start(self, run: Run, label: str, pause_at: int | None = None) -> None:
        """Begin a run, or go on with it, to its end or to a step."""
        ...

    def ended(self, timeout: float) -> Sequence[J]:
        """Those that have ended, after waiting for some time, in seconds, for the first one of them."""
        ...

    def stop(self, jobs: Sequence[J]) -> None:
        """End some."""
        ...


def tune_study(
    path: Path,
    pool: Callable[[Sequence[Run], Console], Pool[J]],
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
        pool: Makes what trains runs, of the runs that were begun and where it is to say what it does.
        fields: What keys the components have, asked for if a pattern needs it.
        check: Called with runs of every choice and end of a range, before the first one trains.
        jobs: How many runs are trained side by side.
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
    if report_only and not (folder / JOURNAL).exists():
        raise UserError(f"{folder}: nothing is tuned yet; leave --report-only out")
    taken = f"another process tunes in it; wait for it, end it, or give {path} another `out`"
    with locked(folder, LOCK, taken):
        searches = [Search(trials, space, folder) for trials, space in spaces_of(study, path, fields)]
        if others := study.variants.keys() - {search.variant for search in searches}:
            console.print(f"{', '.join(sorted(others))}: taught by other variants, and not tuned")
        if not report_only:
            if check and not any(search.known for search in searches):
                runs = [run for search in searches for run in search.representative_runs()]
                console.print(
                    f"{study.name}: checking what the settings make of the variants, {len(runs)} runs"
                )
                check(runs, path)
            begun = [run for search in searches for trial in search.known for run in trial.runs]
            with pool(begun, console) as trainers:
                _train_all(path, searches, trainers, jobs, console)
            if trainers.told:
                console.print(f"{study.name}: told to stop; started again, it goes on from the checkpoints")
                sys.exit(os.EX_TEMPFAIL)
        from cetnet.benchmarks.tune.report import write_results  # draws plots: heavy

        write_results(study, path, searches, console)


def _train_all(path: Path, searches: Sequence[Search], pool: Pool[J], jobs: int, console: Console) -> None:
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
                pool.start(task.run, f"{task.run.variant}, seed {task.run.seed}", task.pause_at)
        failed = {folder for search in searches for folder in search.failed_folders()}
        pool.stop([job for job in pool.under_way if job.run.folder in failed])
        ended: Sequence[J] = ()
        while pool.under_way and not (ended or pool.told):
            ended = pool.ended(_LOOK)
        for job in ended:
            if job.run.folder not in todo or pool.told:
                continue
            search, task = todo[job.run.folder]
            if not task.done and (mistake := job.mistake):
                _take_failure(search, task, mistake, job.killed, console)
    if not pool.told:
        for search in searches:
            for trial in search.known:
                trial.drop_checkpoints()  # also what a run wrote that was told to stop, its trial having failed


def _take_failure(search: Search, task: Task, mistake: str, killed: bool, console: Console) -> None:
    """Leave the trial out; raises UserError if no setting is to blame."""
    if killed or not task.trial.values:
        raise UserError(
            f"{task.trial.label}, seed {task.run.seed} failed ({mistake}); fix it and start the tuning again, which "
            "goes on from here"
        )
    search.fail(task.trial, mistake)
    console.print(f"{task.trial.label}: failed, and is left out ({mistake})")
