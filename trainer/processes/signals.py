"""SIGTERM and SIGUSR1, with which schedulers warn: noticed by who trains, passed on by who starts that."""

import os
import signal
import sys
import time
from contextlib import AbstractContextManager, suppress
from multiprocessing import active_children
from threading import Thread
from types import FrameType
from typing import Self

from cetnet.trainer.console import console

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

# Seconds in which several signals are one warning: Slurm tells every process, and torchrun passes on what it got.
_ONE_WARNING = 5.0


class StopSignals(AbstractContextManager["StopSignals"]):
    """Notices SIGTERM and SIGUSR1; a second one, seconds later, ends the process at once with 128 + its number.

    Used in the main thread. A thread of its own watches, so that the second signal works while the main thread
    waits for another rank.

    Attributes:
        seen: the first signal.
    """

    seen: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._handlers = {number: signal.signal(number, _noticed) for number in SIGNALS}
        self._wakeup_fd = signal.set_wakeup_fd(self._write)
        Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._write)

    def _watch(self) -> None:
        first = 0.0
        while byte := os.read(self._read, 1):  # the number of each signal; none once the other end is closed
            if byte[0] not in SIGNALS:
                continue
            if self.seen is None:
                first, self.seen = time.monotonic(), signal.Signals(byte[0])
                if os.environ.get("RANK", "0") == "0":
                    console.print(f"{self.seen.name}: stopping after this step", highlight=False)
            elif time.monotonic() - first > _ONE_WARNING:
                os._exit(128 + byte[0])
        os.close(self._read)


def _noticed(_number: int, _frame: FrameType | None) -> None:
    """Does nothing: that there is a handler makes Python tell the watching thread."""


def pass_on_signals() -> None:
    """Hand the signals to the processes that this one has started; while it has none, they end it."""
    for number in SIGNALS:
        signal.signal(number, _pass_on)


def _pass_on(number: int, _frame: FrameType | None) -> None:
    children = active_children()
    for child in children:
        with suppress(ProcessLookupError):
            if child.pid:
                os.kill(child.pid, number)
    if not children:
        sys.exit(128 + number)
