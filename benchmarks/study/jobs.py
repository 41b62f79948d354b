"""Runs side by side: each in a process of its own, forked with the libraries loaded, whose output goes to a file."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Self

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from cetnet.benchmarks.study.definition import Run
from cetnet.trainer.errors import UserError, printable
from cetnet.trainer.files import locked
from cetnet.trainer.processes.fork_server import start
from cetnet.trainer.processes.signals import SIGNALS
from cetnet.trainer.run_folder import LOCK

Train = Callable[[list[str]], object]
"""Trains a run, in a process of its own, from the arguments of `cetnet`; it ends with their exit code."""

_PATIENCE = 60.0  # seconds
_TAIL = 4096  # bytes at the end of a log in which its last line is looked for


@dataclass(frozen=True)
class Job:
    """A run under way."""

    run: Run
    process: BaseProcess
    lifeline: Connection
    line: TaskID
    began: float

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self.began

    @property
    def mistake(self) -> str | None:
        """Why it did not finish, with its last words; None if it did, or was told to stop."""
        code, log = self.process.exitcode, log_file(self.run)
        if self.run.finished or told_to_stop(code):
            return None
        return f"{failure(code) or 'no result.json'}: {last_line(log)}; its log is {log}"

    @property
    def killed(self) -> bool:
        """Whether it had no last words."""
        return (self.process.exitcode or 0) < 0


class Jobs(AbstractContextManager["Jobs"]):
    """Runs under way; on a terminal each has a line, with the last one of its log.

    Used in the main thread. SIGTERM, SIGUSR1 and SIGHUP are passed on to all of them, ctrl-C as SIGTERM: they write
    checkpoints and end. So they do when this process is killed, or leaves the block early.

    Args:
        train: What trains a run, a function of a module.
        console: Where the lines are shown.

    Attributes:
        told: whether a signal told this process, or a run on its own, to stop.
    """

    def __init__(self, train: Train, console: Console) -> None:
        self.told = False
        self._train = train
        self._under_way: list[Job] = []
        self._stopped: set[BaseProcess] = set()
        self._display = lines_of_jobs(console)

    def __enter__(self) -> Self:
        numbers = (*SIGNALS, signal.SIGHUP, signal.SIGINT)
        self._handlers = {
            number: signal.signal(number, self._pass_on)
            for number in numbers
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup
        }
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop(self._under_way)
            while self._under_way:
                self.ended(1.0)
        finally:
            self._display.stop()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    @property
    def under_way(self) -> Sequence[Job]:
        """Those that have not ended."""
        return self._under_way

    def start(self, run: Run, label: str, pause_at: int | None = None) -> None:
        """Begin a run, or go on with it, to its end or to a step.

        Raises SystemExit if a signal ends the wait for the fork server.
        """
        options = ["--resume"] if run.folder.exists() else []
        if options:
            _wait_for_what_is_left(run.folder)
        if pause_at:
            options += ["--pause-at", str(pause_at)]
        run.write_settings()
        reader, lifeline = Pipe(duplex=False)
        argument = (self._train, ["train", *run.arguments, *options], log_file(run), reader)
        process = start(_be_job, argument, run.nproc)
        reader.close()
        line = self._display.add_task(label, total=None, last="starting")
        self._under_way.append(Job(run, process, lifeline, line, time.monotonic()))
        if self.told:  # meanwhile
            self.stop(self._under_way[-1:])

    def ended(self, timeout: float) -> list[Job]:
        """Those that have ended, after waiting for some time, in seconds, for the first one of them."""
        wait([job.process.sentinel for job in self._under_way], timeout)
        done = [job for job in self._under_way if job.process.exitcode is not None]
        for job in done:
            self._under_way.remove(job)
            self._display.remove_task(job.line)
            job.lifeline.close()
            if told_to_stop(job.process.exitcode) and job.process not in self._stopped:
                self._tell_all()
        for job in self._under_way:
            self._display.update(job.line, last=last_line(log_file(job.run)))
        return done

    def stop(self, jobs: Sequence[Job]) -> None:
        """Tell them to write a checkpoint and end; once, as a second time would not wait for it."""
        self._signal([job for job in jobs if job.process not in self._stopped], signal.SIGTERM)

    def _tell_all(self) -> None:
        self.told = True
        self.stop(self._under_way)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        jobs = [job for job in self._under_way if self.told or job.process not in self._stopped]
        if number == signal.SIGINT:  # a second ctrl-C doesn't wait for checkpoints
            number = signal.SIGKILL if self.told else signal.SIGTERM
        self.told = True
        self._signal(jobs, number)

    def _signal(self, jobs: Sequence[Job], number: int) -> None:
        for job in jobs:
            self._stopped.add(job.process)
            with suppress(ProcessLookupError):
                if job.process.pid and job.process.exitcode is None:
                    os.kill(job.process.pid, number)


def lines_of_jobs(console: Console) -> Progress:
    """A line for each of several jobs, on a terminal: how long, its description, and `last`."""
    return Progress(
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[last]}", markup=False, style="dim"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _be_job(argument: tuple[Train, list[str], Path, Connection]) -> None:
    train, arguments, log, lifeline = argument
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this passes it on as SIGTERM
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    Thread(target=_end_with, args=(lifeline, os.getpid()), daemon=True).start()
    train(arguments)


def _end_with(lifeline: Connection, process: int) -> None:
    """Tell a process to stop when the other end of its lifeline is gone."""
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os.kill(process, signal.SIGTERM)


def _wait_for_what_is_left(folder: Path) -> None:
    """Wait for a run whose study was killed, and which writes its checkpoint; not for one that goes on."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with suppress(UserError), locked(folder, LOCK, "taken"):
            return
        time.sleep(0.5)


def log_file(run: Run) -> Path:
    """What a run said that was trained beside others."""
    return run.folder.with_name(f"{run.folder.name}.log")


def last_line(log: Path) -> str:
    """The last whole line of a log; empty if it has none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().rpartition(b"\n")[0].splitlines()
    except FileNotFoundError:
        return ""
    return printable(lines[-1].decode("utf-8", "replace")) if lines else ""


def told_to_stop(code: int | None) -> int | None:
    """The exit code for whoever started a process that was told to stop; None if it ended otherwise."""
    if code == os.EX_TEMPFAIL:  # and has said so
        return code
    # Told to stop before it could have said so.
    if code and (-code if code < 0 else code - 128) in (*SIGNALS, signal.SIGHUP):
        return 128 - code if code < 0 else code
    return None


def failure(code: int | None) -> str | None:
    """How a process failed, from its exit code; None if it didn't. Ends this one if that was told to stop."""
    if told := told_to_stop(code):
        sys.exit(told)
    if not code:
        return None
    guess = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{guess}" if code < 0 else f"exit code {code}"
