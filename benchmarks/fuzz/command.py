"""One `cetnet` command: forked from a process that has the libraries loaded, or started as people start it."""

import faulthandler
import multiprocessing
import os
import resource
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cetnet.trainer.cli import main
from cetnet.trainer.processes.launcher import CETNET, run_forked

Stream = Literal["closed", "full", "broken pipe", "missing"]
NOBODY = 65534


@dataclass
class Command:
    """What is run, and in what surroundings.

    Attributes:
        arguments: those of `cetnet`.
        folder: where it stands.
        environment: changes to ours; None takes a variable away.
        new: a new process, not a fork; the environment counts fully only there.
        limits: soft and hard limit by RLIMIT_*.
        streams: what is done to the streams 0, 1 and 2.
        stop_after: seconds until SIGTERM.
        nobody: run as the user without rights.
    """

    arguments: list[str]
    folder: Path
    environment: dict[str, str | None] = field(default_factory=dict)
    new: bool = False
    limits: dict[int, int] = field(default_factory=dict)
    streams: dict[int, Stream] = field(default_factory=dict)
    stop_after: float | None = None
    nobody: bool = False
    timeout: float = 60


@dataclass
class Ended:
    """How a command ended: exit code (negative: by that signal), what it printed, what it left running."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    hung: bool
    stopping: float | None
    left: list[str]


def run(command: Command, keep: frozenset[int] = frozenset()) -> Ended:
    """Run a command to its end, or to its timeout; `keep` are children of ours that have nothing to do with it."""
    pipes = [os.pipe(), os.pipe()]
    process = multiprocessing.get_context("fork").Process(
        target=_be, args=(command, [writer for _, writer in pipes])
    )
    start = time.monotonic()
    process.start()
    assert process.pid
    said = {reader: b"" for reader, _ in pipes}
    for reader, writer in pipes:
        os.close(writer)
        os.set_blocking(reader, False)
    hung, stopped = False, None
    while process.exitcode is None:
        _listen(said, 0.005)
        elapsed = time.monotonic() - start
        if command.stop_after is not None and stopped is None and elapsed > command.stop_after:
            stopped = time.monotonic()
            os.kill(process.pid, signal.SIGTERM)
        if elapsed > command.timeout + (3 if hung else 0):
            # First the stacks, by faulthandler.
            os.kill(process.pid, signal.SIGKILL if hung else signal.SIGABRT)
            hung = True
    end = time.monotonic()
    left = _sweep(keep)
    _listen(said, 0)
    for reader in said:
        os.close(reader)
    stdout, stderr = (text.decode(errors="replace") for text in said.values())
    stopping = None if stopped is None else end - stopped
    return Ended(process.exitcode, stdout, stderr, end - start, hung, stopping, left)


def _listen(said: dict[int, bytes], seconds: float) -> None:
    """Take what was printed, waiting for it for so long."""
    poll = select.poll()
    for reader in said:
        poll.register(reader, select.POLLIN)
    if not poll.poll(seconds * 1000):
        return
    for reader in said:
        with suppress(BlockingIOError):
            while text := os.read(reader, 1 << 16):
                said[reader] += text
    time.sleep(seconds if seconds else 0)


def _sweep(keep: frozenset[int]) -> list[str]:
    """Command lines of processes that outlived their command by 10 seconds; they are killed."""
    end = time.monotonic() + 10
    while orphans := _children() - keep:
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    left = []
    for pid in orphans:
        with suppress(OSError):
            left.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return left


def _children() -> frozenset[int]:
    pid = os.getpid()
    return frozenset(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()))


def _be(command: Command, outputs: list[int]) -> None:
    os.setsid()
    os.chdir(command.folder)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python does
    for name, value in command.environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _set_streams(command, outputs)
    if command.nobody:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    for kind, most in command.limits.items():
        resource.setrlimit(kind, (most, most))
    if command.new:
        os.environ["PYTHONFAULTHANDLER"] = "1"
        os.execv(CETNET[0], [*CETNET, *command.arguments])
    faulthandler.enable(file=2)
    run_forked(main, command.arguments)


def _set_streams(command: Command, outputs: list[int]) -> None:
    for number, file in enumerate([os.open("/dev/null", os.O_RDONLY), *outputs]):
        how = command.streams.get(number)
        if how == "full":
            file = os.open("/dev/full", os.O_WRONLY)
        elif how == "broken pipe":
            reader, file = os.pipe()
            os.close(reader)
        os.dup2(file, number)
        os.close(file)
        if how == "closed":
            os.close(number)
