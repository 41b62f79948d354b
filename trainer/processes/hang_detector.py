"""A rank that stops answering is found and named, and of all errors that end a run the first is told, once.

Every rank says in the store, from a thread of its own, that it lives, what it is doing and how far it is. Rank 0
looks at what all say, the others at what rank 0 says. Who finds something wrong says so in the store, where all look.
"""

import faulthandler
import json
import math
import os
import platform
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, NamedTuple

import psutil
import torch.distributed as dist

from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import say, tell
from cetnet.trainer.processes.signals import SIGNALS

STARTING, LOADING, TRAINING, READING, MEASURING, SAVING, LEFT = (
    "starting",
    "loading a checkpoint",
    "training",
    "reading data",
    "computing metrics",
    "saving a checkpoint",
    "left",
)

# What one rank may do for hours while the others wait for it.
_LONG = (LOADING, MEASURING, SAVING)
_INTERVAL = 1.0  # seconds between two signs of life
# Seconds in which whoever has a real error claims it, and in which the others end by themselves.
_GRACE = 5.0
_FAILURE = "failure"


class Sign(NamedTuple):
    """What a rank says of itself.

    Attributes:
        number: counts the signs.
        step: the last that was done.
        moves: counts the batches and what it turned to.
        collectives: how many it has entered: of two ranks that wait, one waits for the one with fewer.
    """

    number: int
    doing: str
    step: int
    moves: int
    collectives: int
    host: str
    pid: int


class HangDetector:
    """This rank's part in finding a rank that hangs; alone, it does nothing.

    Args:
        store: known to the ranks of this start only.
        rank: this process's rank.
        size: number of processes.
        minutes: how long a rank may say nothing, or keep the others waiting.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, minutes: float) -> None:
        self._store = dist.PrefixStore("hang", store)
        self._rank, self._size, self._minutes = rank, size, minutes
        self._interval = min(_INTERVAL, minutes * 60 / 10)
        # Counted in looks, not by a clock: a job that was suspended as a whole is not late.
        self._limit = math.ceil(minutes * 60 / self._interval)
        self._number = self._step = self._moves = 0
        self._doing = STARTING
        self._error: Exception | None = None  # which this rank tells
        self._groups: list[dist.ProcessGroup] = []
        self._last: dict[int, Sign] = {}
        self._silent: Counter[int] = Counter()
        self._stuck: Counter[int] = Counter()
        self._over = Event()
        # A call that waits blocks all others of its connection, hence one for the thread.
        clone = self._store.clone()  # type: ignore[attr-defined]  # missing in the stubs
        self._thread = Thread(target=self._run, args=[clone], name="hang-detector", daemon=True)
        if size > 1:
            self._say(self._store)  # once the ranks have found each other, every one's sign is there

    def start(self) -> None:
        """Look from now on."""
        if self._size > 1:
            self._thread.start()

    def count_collectives(self, *groups: dist.ProcessGroup) -> None:
        """Count the groups' collectives, which tell who is behind."""
        self._groups = list(groups)

    def report(self, doing: str, step: int) -> None:
        """Say that `step` is done and what comes now."""
        self._doing, self._step = doing, step
        self.progressed()

    def progressed(self) -> None:
        """Say that something was done, such as a batch of an evaluation."""
        self._moves += 1

    @contextmanager
    def while_doing(self, doing: str) -> Iterator[None]:
        """Say what is being done meanwhile."""
        before, self._doing = self._doing, doing
        self.progressed()
        try:
            yield
        finally:
            self._doing = before
            self.progressed()

    def exit_code_in_silence(self, error: Exception) -> int | None:
        """The exit code with which to end in silence after an error; None if it is this rank's to tell.

        The first to come tells of its error. Who only lost its connection waits for the one that knows why; if none
        does, one of them tells in a line who is gone.
        """
        if self._size == 1:
            return None
        for number in SIGNALS:  # torchrun sends them as soon as another has ended
            signal.signal(number, signal.SIG_IGN)
        try:
            if not _lost_connection(error):
                if self._claim(self._store, 2 if isinstance(error, UserError) else 1):
                    self._error = error
                    return None
            else:
                before, patience = self._signs(self._store, range(self._size)), time.monotonic() + _GRACE
                while not self._store.check([_FAILURE]) and time.monotonic() < patience:
                    time.sleep(0.1)
                if self._claim(self._store, 1):
                    after = self._signs(self._store, range(self._size))
                    gone = [_name(rank, sign) for rank, sign in after.items() if sign == before[rank]]
                    why = f"{_listed(gone)} is gone (killed, out of memory?)" if gone else _first_line(error)
                    say(f"{why}; --resume goes on from the newest checkpoint")
            return int(self._failure(self._store)["code"])
        except RuntimeError:  # the store has gone with rank 0
            if not _lost_connection(error):
                return None
            say(f"rank {self._rank} lost the connection to rank 0")
            return 1

    def close(self) -> None:
        """Leave: nobody waits for this rank any more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(_GRACE)
            with suppress(RuntimeError):  # the store may have gone with rank 0
                self._leave(self._store)

    def _run(self, store: dist.Store) -> None:
        """What the thread does: say, look, and end the process when the run has failed."""
        watched = range(self._size) if self._rank == 0 else range(1)
        try:
            while not self._over.wait(self._interval):
                self._say(store)
                self._look(store, self._signs(store, watched))
                if store.check([_FAILURE]):
                    self._end(self._failure(store), store)
        except RuntimeError:
            return  # the store has gone with the process that keeps it, which ends the collectives too

    def _leave(self, store: dist.Store) -> None:
        self._doing, self._groups = LEFT, []
        self._say(store)
        # Started by neither torchrun nor --nproc, rank 0 keeps the store, and the others may have to read it yet.
        if self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            patience = time.monotonic() + 2 * _GRACE
            while time.monotonic() < patience and any(
                sign.doing != LEFT for sign in self._signs(store, range(self._size)).values()
            ):
                time.sleep(0.05)

    def _say(self, store: dist.Store) -> None:
        self._number += 1
        collectives = sum(
            group._get_sequence_number_for_group()  # type: ignore[attr-defined]  # missing in the stubs
            for group in self._groups
        )
        sign = Sign(
            self._number, self._doing, self._step, self._moves, collectives, platform.node(), os.getpid()
        )
        store.set(f"sign/{self._rank}", json.dumps(sign))

    def _signs(self, store: dist.Store, ranks: Iterable[int]) -> dict[int, Sign]:
        texts = store.multi_get([f"sign/{rank}" for rank in ranks])
        return {rank: Sign(*json.loads(text)) for rank, text in zip(ranks, texts, strict=True)}

    def _look(self, store: dist.Store, signs: dict[int, Sign]) -> None:
        for rank, sign in signs.items():
            last = self._last.get(rank, sign)
            self._silent[rank] = self._silent[rank] + 1 if sign.number == last.number else 0
            stands = (sign.moves, sign.collectives) == (last.moves, last.collectives)
            self._stuck[rank] = self._stuck[rank] + 1 if stands else 0
        self._last = signs
        running = {rank: sign for rank, sign in signs.items() if sign.doing != LEFT}
        if silent := [rank for rank in running if self._silent[rank] >= self._limit]:
            what, hung = "has not answered", silent
        elif self._rank == 0 and (stuck := self._hold_up(running)):
            alone = len(stuck) < len(running)
            what = "has not got on" if alone else "and all others have not got on"
            hung = stuck if alone else [0]
        else:
            return
        names = _listed([_name(rank, signs[rank]) for rank in hung])
        if self._claim(store, 1, hung):
            say(
                f"{names} {what} for {self._minutes:g} minutes (training.timeout_minutes); "
                "--resume goes on from the newest checkpoint"
            )

    def _hold_up(self, running: dict[int, Sign]) -> list[int]:
        """The ranks for which all wait, if all stand still: those that have entered the fewest collectives."""
        if any(self._stuck[rank] < self._limit for rank in running):
            return []
        fewest = min(sign.collectives for sign in running.values())
        behind = [rank for rank, sign in running.items() if sign.collectives == fewest]
        # All may take long to start, while nobody waits.
        long = _LONG if len(behind) < len(running) else (*_LONG, STARTING)
        return [] if any(running[rank].doing in long for rank in behind) else behind

    def _claim(self, store: dist.Store, code: int, hung: Iterable[int] = ()) -> bool:
        """Whether this rank is the first to say that the run has failed."""
        failure = json.dumps({"rank": self._rank, "code": code, "hung": list(hung)})
        return store.compare_set(_FAILURE, "", failure).decode() == failure

    def _failure(self, store: dist.Store) -> dict[str, Any]:
        return json.loads(store.get(_FAILURE))

    def _end(self, failure: dict[str, Any], store: dist.Store) -> None:
        """End the process, whatever its main thread waits for; without a hang that has time to end by itself."""
        if failure["hung"]:
            if self._rank in failure["hung"]:
                faulthandler.dump_traceback()
            for sign in self._signs(store, failure["hung"]).values():
                _kill_sibling(sign)
        elif self._over.wait(_GRACE):
            return
        elif self._error is not None:  # the groups can't be taken down, so it was not told yet
            tell(self._error)
        self._leave(store)
        os._exit(failure["code"])


def _kill_sibling(sign: Sign) -> None:
    """Kill a stopped process that the same launcher has started here, which would wait for it to end by itself."""
    if sign.host == platform.node() and sign.pid != os.getpid():
        with suppress(psutil.Error):
            process = psutil.Process(sign.pid)
            if process.ppid() == os.getppid() and process.status() == psutil.STATUS_STOPPED:
                process.kill()


def _lost_connection(error: Exception) -> bool:
    """Whether an error may be the consequence of another rank's end: gloo raises a plain RuntimeError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _name(rank: int, sign: Sign) -> str:
    return f"rank {rank} on {sign.host} (process {sign.pid}, last seen {sign.doing} after step {sign.step})"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _first_line(error: Exception) -> str:
    return f"lost the connection to another rank ({str(error).splitlines()[0]})"
