"""SIGTERM and SIGUSR1, with which schedulers warn: noticed by who trains, passed on by who starts that.

Elsewhere signals have their default action, which ends a process at any moment, in any library, or clean up first.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing import active_children
from threading import Event, Thread, current_thread, main_thread
from types import FrameType
from typing import Self

from cetnet.trainer.console import console

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

# Seconds in which several signals are one warning: Slurm tells every process, and torchrun passes on what it got.
_ONE_WARNING = 5.0
# Seconds in which a process that has nothing to save, or was interrupted, ends by itself.
_PATIENCE = 2.0


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Have signals that would end this process raise an exception here instead: SystemExit, or KeyboardInterrupt.

    A second one ends it at once. For blocks that would leave something (a file, a hidden cursor, processes) and
    spend their time in Python; in other threads than the main one it does nothing.
    """
    if current_thread() is not main_thread():
        yield
        return
    mine = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _frame: FrameType | None) -> None:
        for each in mine:
            signal.signal(each, signal.SIG_DFL)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for number in mine:
        signal.signal(number, end)
    if callable(interrupted := signal.getsignal(signal.SIGINT)):
        # Once more: polars has put a handler in front of it, after which calls that wait go on.
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


class StopSignals(AbstractContextManager["StopSignals"]):
    """Notices SIGTERM and SIGUSR1; a second one, seconds later, ends the process at once with 128 + its number.

    The first one does, with code 75, if `heeded` isn't set soon: nothing is lost before the first step. Ctrl-C is a
    KeyboardInterrupt, and ends a process that doesn't heed it, too. Used in the main thread. A thread of its own
    watches, so that all this works while the main thread waits for another rank.

    Attributes:
        seen: the first signal.
        heeded: set by who looks at it, once there is something to save.
    """

    seen: signal.Signals | None = None

    def __init__(self) -> None:
        self.heeded = Event()

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._handlers = {number: signal.signal(number, _noticed) for number in SIGNALS}
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._wakeup_fd = signal.set_wakeup_fd(self._write)
        Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heeded.set()
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._write)

    def _watch(self) -> None:
        first = 0.0
        while byte := os.read(self._read, 1):  # the number of each signal; none once the other end is closed
            number = signal.Signals(byte[0])
            if number == signal.SIGINT and number in self._handlers:
                time.sleep(_PATIENCE)
                os._exit(128 + number)
            if number not in SIGNALS:
                continue
            if self.seen is None:
                first, self.seen = time.monotonic(), number
                self._say("stopping after this step")
                if not self.heeded.wait(_PATIENCE):
                    self._say("ended before the first step, with nothing to save; go on with --resume")
                    os._exit(os.EX_TEMPFAIL)
            elif time.monotonic() - first > _ONE_WARNING:
                os._exit(128 + number)
        os.close(self._read)

    def _say(self, what: str) -> None:
        if os.environ.get("RANK", "0") == "0" and self.seen is not None:
            console.print(f"{self.seen.name}: {what}")


def _noticed(_number: int, _frame: FrameType | None) -> None:
    """Does nothing: that there is a handler makes Python tell the watching thread."""


def pass_on_signals(*more: signal.Signals) -> None:
    """Hand SIGNALS, and `more`, to the processes that this one has started; while it has none, they end it."""
    for number in (*SIGNALS, *more):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _pass_on)


def _pass_on(number: int, _frame: FrameType | None) -> None:
    children = active_children()
    for child in children:
        with suppress(ProcessLookupError):
            if child.pid:
                os.kill(child.pid, number)
    if not children:
        sys.exit(128 + number)
