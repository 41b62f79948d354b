"""Measure programs side by side on one machine: one runs, the others are stopped, in turn.

A contender trains without end and appends a line every few steps to a file, with `step` and `seconds`. SIGSTOP stops
it with its memory as it is, so that a turn costs nothing. Its clock goes on meanwhile: only lines of one window are
compared.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

WARM_STEPS, WARM_SECONDS = 20, 20.0
_FEWEST_LINES = 3
_LOOK = 0.05  # seconds between two looks at a file
_PATIENCE = 300.0


class ContenderError(RuntimeError):
    """A contender ended, or is not heard of; names its log."""


class Line(NamedTuple):
    """A line of progress: steps done, and the contender's clock."""

    step: int
    seconds: float


@dataclass(frozen=True)
class Contender:
    """A program that trains until it is killed.

    Attributes:
        command: started in a session of its own.
        progress: the file it appends to, JSON lines; those without `seconds` don't count.
        rows_per_step: rows that a step is worth.
        env: environment variables beside ours.
    """

    name: str
    command: Sequence[str]
    progress: Path
    rows_per_step: float
    env: Mapping[str, str] = field(default_factory=dict)


class Running:
    """A contender's process and those that it started."""

    def __init__(self, contender: Contender, log: Path) -> None:
        self.contender, self.log = contender, log
        self._read, self._lines = 0, list[Line]()
        contender.progress.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                contender.command,
                env=os.environ | contender.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def lines(self) -> list[Line]:
        """The whole lines written so far; reads what is new, so that asking often costs little."""
        with suppress(FileNotFoundError), self.contender.progress.open("rb") as file:
            file.seek(self._read)
            new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            self._read += len(new)
            records = [json.loads(line) for line in new.splitlines()]
            self._lines += [Line(r["step"], r["seconds"]) for r in records if "seconds" in r]
        return self._lines

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and all below it, which may have sessions of their own."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def check(self) -> None:
        """Raise ContenderError if it has ended."""
        if (code := self._process.poll()) is not None:
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise ContenderError(
                f"{self.contender.name}: exit code {code} ({', '.join(last)}); see {self.log}"
            )

    def wait_until(self, done: Callable[[list[Line]], bool], doing: str) -> None:
        """Wait for lines; raises ContenderError if none has come for minutes."""
        count, heard = 0, time.monotonic()
        while True:
            lines = self.lines()
            if done(lines):
                return
            self.check()
            if len(lines) > count:
                count, heard = len(lines), time.monotonic()
            if time.monotonic() - heard > _PATIENCE:
                raise ContenderError(
                    f"{self.contender.name}: no step in {_PATIENCE:.0f} s of {doing}; see {self.log}"
                )
            time.sleep(_LOOK)

    def end(self) -> None:
        """Kill it."""
        self.send(signal.SIGKILL)
        self._process.wait()


def rate(lines: Sequence[Line], rows_per_step: float, longest: float) -> float:
    """Rows a second between the first and the last line of a window that took `longest` seconds.

    A line whose time was taken before the contender was last stopped lies farther back than that, and is left out.
    """
    last = lines[-1]
    first = next(line for line in lines if last.seconds - line.seconds <= longest)
    return rows_per_step * (last.step - first.step) / (last.seconds - first.seconds)


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    seconds: float,
    logs: Path,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Rows a second of each contender in each round, by name.

    Each is started and warmed up alone. A window takes `seconds`, or as long as a contender needs to say three times
    how far it is. All are killed in the end, however it comes.

    Raises:
        ContenderError: one of them failed.
    """
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    with _ended() as running:
        for contender in contenders:
            say(f"{contender.name}: warming up")
            logs.mkdir(parents=True, exist_ok=True)
            one = Running(contender, logs / f"{contender.name.replace(' ', '-')}.log")
            running.append(one)
            one.wait_until(_warm, "warming up")
            one.send(signal.SIGSTOP)
        for number in range(rounds):
            for one in running:
                rates[one.contender.name].append(_window(one, seconds))
            say(
                f"round {number + 1} of {rounds}: " + ", ".join(f"{k} {v[-1]:,.0f}" for k, v in rates.items())
            )
    return rates


def _warm(lines: list[Line]) -> bool:
    """Whether it has made 20 steps, or trained for so long that they would take minutes."""
    if len(lines) < _FEWEST_LINES:
        return False
    return lines[-1].step >= WARM_STEPS or lines[-1].seconds - lines[0].seconds >= WARM_SECONDS


def _window(one: Running, seconds: float) -> float:
    before, start = len(one.lines()), time.monotonic()
    one.send(signal.SIGCONT)

    def done(lines: list[Line]) -> bool:
        return time.monotonic() - start >= seconds and len(lines) - before >= _FEWEST_LINES

    one.wait_until(done, "training")
    one.send(signal.SIGSTOP)
    elapsed = time.monotonic() - start
    return rate(one.lines()[before:], one.contender.rows_per_step, elapsed)


@contextmanager
def _ended() -> Iterator[list[Running]]:
    """Processes that are killed in the end, at Ctrl-C and SIGTERM too."""
    running: list[Running] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield running
    finally:
        for one in running:
            one.end()
        signal.signal(signal.SIGTERM, before)
