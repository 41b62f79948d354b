"""The trials of a tuning as jobs of a scheduler, through TorchX: submitted, waited for, found again after a kill."""

import json
import shlex
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zlib import crc32

from rich.console import Console
from rich.progress import Progress, TaskID
from torchx.runner import get_runner

from cetnet.benchmarks.study.definition import Run, Study
from cetnet.benchmarks.study.jobs import last_line, lines_of_jobs
from cetnet.benchmarks.tune.check import component_fields, trials_of
from cetnet.benchmarks.tune.run import tune_study
from cetnet.launch.cluster import Cluster, Resources, State
from cetnet.trainer.console import output
from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import FAILURE_FILE
from cetnet.trainer.files import locked
from cetnet.trainer.run_folder import LOCK

_LAG = 60.0  # seconds in which what a job wrote shows up here: NFS looks again after 30 to 60
_DEATHS = 3  # of a run's jobs, one after the other and at the same step, after which nobody is asked again
_LOCAL = "local_cwd"


@dataclass
class TrialJob:
    """A run under way, or about to be: the job that trains it.

    Attributes:
        run: of a trial.
        label: what it is called.
        pause_at: the step that it is to come to; None: its end.
        found: whether the job is of an earlier start of this program, so that `pause_at` isn't known.
        line: of it on the terminal.
        state: of the job; None while there is none, as somebody else trains in the folder.
        since: when it was seen to have ended, by the monotonic clock.
        mistake: why it is given up.
        killed: whether its jobs said nothing of that.
    """

    run: Run
    label: str
    pause_at: int | None
    line: TaskID
    found: bool = False
    state: State | None = None
    since: float | None = None
    mistake: str | None = None
    killed: bool = False


@dataclass
class _Deaths:
    """Jobs of a run that ended one after the other without having brought it further."""

    step: int
    words: str
    count: int = 1


class TrialJobs(AbstractContextManager["TrialJobs"]):
    """Jobs under way, as `tune_study` has its pool.

    One that ended before its rung is asked again; given up is a run of which two jobs said the same last words, or
    three came no further.

    Args:
        cluster: Where they are submitted.
        study: Its name, for theirs.
        poll: Seconds between two looks at their states.
        begun: Runs that may be under way since before.
        console: Where it is said how they do.
    """

    told = False

    def __init__(
        self, cluster: Cluster, study: str, poll: float, begun: Sequence[Run], console: Console
    ) -> None:
        self._cluster, self._study, self._poll, self._console = cluster, study, poll, console
        self._display: Progress = lines_of_jobs(console)
        self._deaths: dict[Path, _Deaths] = {}
        self._stopped: set[Path] = set()
        self._waiting: set[Path] = set()  # for somebody else to leave these folders
        self._next_look = 0.0
        self.under_way: list[TrialJob] = []
        for run in begun:
            if not run.finished and (state := cluster.state(run)) and not state.ended:
                job = self._add(run, f"{run.variant}, seed {run.seed}", None)
                job.found = True
                self._say(job, state)

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()
        handles = [job.state.handle for job in self.under_way if job.state and not job.state.ended]
        if not handles:
            return
        if self._cluster.scheduler == _LOCAL:
            self._console.print(
                "The jobs end with this program; started again, it goes on from their checkpoints"
            )
            return
        cancel = "; ".join(f"torchx cancel {shlex.quote(handle)}" for handle in handles)
        self._console.print(
            f"Jobs that go on without this program, {len(handles)}: started again, it finds them. To end them: "
            f"{cancel}"
        )

    def start(self, run: Run, label: str, pause_at: int | None = None) -> None:
        """Submit a run, to be trained to its end or to a step; raises UserError if that is refused."""
        self._submit(self._add(run, label, pause_at))

    def ended(self, timeout: float) -> Sequence[TrialJob]:
        """Those that have ended, or are given up, after waiting so many seconds at most."""
        time.sleep(max(0.0, min(timeout, self._next_look - time.monotonic())))
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + self._poll
        done = [job for job in self.under_way if self._is_over(job)]
        for job in done:
            self.under_way.remove(job)
            self._display.remove_task(job.line)
        return done

    def stop(self, jobs: Sequence[TrialJob]) -> None:
        """Cancel some, once."""
        for job in jobs:
            if job.run.folder not in self._stopped:
                self._stopped.add(job.run.folder)
                if job.state:
                    self._cluster.cancel(job.state.handle)

    def _add(self, run: Run, label: str, pause_at: int | None) -> TrialJob:
        line = self._display.add_task(label, total=None, last="")
        self.under_way.append(TrialJob(run, label, pause_at, line))
        return self.under_way[-1]

    def _submit(self, job: TrialJob) -> None:
        run = job.run
        if run.folder.exists():
            try:
                with locked(run.folder, LOCK, "another process trains in it"):
                    pass
            except UserError as error:  # a job that its scheduler has forgotten
                if run.folder not in self._waiting:
                    self._console.print(f"{job.label}: waits, as {error}")
                self._waiting.add(run.folder)
                self._display.update(job.line, last="waits")
                return
        note = _failure_file(run)
        note.unlink(missing_ok=True)
        options = ["--pause-at", str(job.pause_at)] if job.pause_at else []
        name = f"{self._study[:12]}-{run.variant[-18:]}-{run.seed}"
        port = 29500 + crc32(str(run.folder).encode()) % 1000
        request = self._cluster.request(name, run, port, *options, env={FAILURE_FILE: str(note)})
        handle = self._cluster.submit(request, run, job.label)
        self._say(job, State(handle, "submitted"))

    def _is_over(self, job: TrialJob) -> bool:
        """Whether a job has ended and what it wrote is here, or isn't coming; says how it does."""
        if job.state is None:
            if job.run.folder in self._stopped:
                return True
            self._submit(job)
            return False
        if not job.state.ended:
            self._say(job, self._cluster.state(job.run) or job.state._replace(ended=True, text="forgotten"))
        if not job.state.ended:
            return job.run.finished and job.state.unknown
        came = job.run.finished or (job.pause_at is not None and _last_step(job.run) >= job.pause_at)
        if came or (job.found and job.state.succeeded):
            self._deaths.pop(job.run.folder, None)
            return True
        job.since = job.since or time.monotonic()
        words = last_line(_failure_file(job.run))
        if not words and time.monotonic() < job.since + _LAG:
            return False
        if job.run.folder not in self._stopped:
            self._take_death(job, words)
        return True

    def _take_death(self, job: TrialJob, words: str) -> None:
        """Remember that a job ended too early, and decide whether the run is asked again."""
        assert job.state
        step, before = _last_step(job.run), self._deaths.get(job.run.folder)
        count = before.count + 1 if before and before.step == step else 1
        said = words or f"{job.state.text}, without a word"
        log = f"its log: torchx log {job.state.handle}"
        if words and before and before.words == words:
            job.mistake = f"twice: {words}; {log}"
        elif count == _DEATHS:
            job.mistake, job.killed = f"{count} jobs ended at step {step}: {said}; {log}", True
        else:
            self._console.print(
                f"{job.label}: {job.state.handle} ended too early, asked again ({said}; {log})"
            )
        self._deaths[job.run.folder] = _Deaths(step, words, count)

    def _say(self, job: TrialJob, state: State) -> None:
        """Take in the state of a job, and say it if it is another."""
        changed = job.state is None or (job.state.handle, job.state.text) != (state.handle, state.text)
        job.state = state
        if changed:
            came = f", step {step:,}" if (step := _last_step(job.run)) else ""
            self._console.print(f"{job.label}: {state.handle}, {state.text}{came}")
        self._display.update(job.line, last=f"{state.text} · {_progress(job.run)}")


def tune_as_jobs(
    path: Path, scheduler: str, options: str, resources: Resources, *, jobs: int, poll: float, dryrun: bool
) -> None:
    """Tune a study, each trial up to a rung being a job; ends with the files of `cetnet tune`.

    Args:
        path: The study file.
        scheduler: TorchX's name of it.
        options: `key=value,...` for the scheduler.
        resources: Of each job.
        jobs: How many are under way at most.
        poll: Seconds between two looks at their states.
        dryrun: Show the first job of each variant, submit nothing.

    Raises:
        UserError: as `tune_study`, and if a job is refused.
    """
    study = Study.load(path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with get_runner() as runner:
        cluster = Cluster(runner, scheduler, options, resources)
        for number, handler in handlers.items():  # TorchX's local scheduler has put its own there
            signal.signal(number, handler)
        if dryrun:
            for trials in trials_of(study, path):
                run = trials.make(0, {}).runs[0]
                output.rule(f"{run.variant}, seed {run.seed}")
                print(cluster.request(f"{study.name}-{run.variant}", run, 29500))
            return
        tune_study(
            path,
            lambda begun, console: TrialJobs(cluster, study.name, poll, begun, console),
            component_fields,
            jobs=jobs,
        )


def _failure_file(run: Run) -> Path:
    return run.folder.with_name(f"{run.folder.name}.failure")


def _last_record(run: Run) -> dict[str, Any]:
    """What a run last wrote of its training; empty if nothing."""
    with suppress(OSError, ValueError), (run.folder / "metrics.jsonl").open(encoding="utf-8") as file:
        *_, last = (line for line in file if line.endswith("\n"))  # the others are being written
        return json.loads(last)
    return {}


def _last_step(run: Run) -> int:
    return _last_record(run).get("step", 0)


def _progress(run: Run) -> str:
    record = _last_record(run)
    ne = record.get("ne/window/fused")
    return f"step {record.get('step', 0):,}" + (f", NE {ne:.4f}" if ne is not None else "")
