"""What all ranks agree on after each step: to stop as told, to save as the clock says, to end as a save failed."""

import time

import torch
import torch.distributed as dist

from cetnet.trainer.checkpoint.checkpoints import Checkpoints
from cetnet.trainer.processes.distributed import PATIENCE
from cetnet.trainer.processes.signals import StopSignals


class Agreement:
    """What the ranks agree on after every step: to stop, and that a checkpoint is due by the clock or has failed.

    Each says what it knows, and learns one step later what any of them knew: nobody waits, and all do the same at
    the same step. Every rank has one and calls it at the same steps.

    Args:
        signals: this rank's.
        checkpoints: the run's, saved in the background.
        every_minutes: between checkpoints, by rank 0's clock; None: none.

    Attributes:
        stop: a rank was told to stop.
        save: a checkpoint is due.
    """

    def __init__(self, signals: StopSignals, checkpoints: Checkpoints, every_minutes: float | None) -> None:
        self.stop = self.save = False
        self._signals, self._checkpoints = signals, checkpoints
        self._interval = every_minutes * 60 if every_minutes and dist.get_rank() == 0 else float("inf")
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._asked: tuple[torch.Tensor, dist.Work] | None = None
        self._due = time.monotonic() + self._interval

    def step(self) -> None:
        """Take in what was said a step ago, and say what is known now; signals are heeded from the first call on.

        Raises:
            UserError: a checkpoint could not be written.
        """
        if self._asked is not None:
            answer, work = self._asked
            work.wait()
            self.stop, self.save = self.stop or bool(answer[0]), self.save or bool(answer[1])
            if answer[2] and not self.stop:  # then another is tried, at once
                self._checkpoints.wait()
        self._signals.heeded.set()
        due = time.monotonic() >= self._due
        if due:
            self._due = float("inf")  # until it is saved
        told, failed = self._signals.seen is not None, self._checkpoints.failed
        question = torch.tensor([told, due, failed], dtype=torch.int32)
        work = dist.all_reduce(question, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._asked = question, work

    def saved(self) -> None:
        """Start the clock anew: a checkpoint was written."""
        self.save, self._due = False, time.monotonic() + self._interval
