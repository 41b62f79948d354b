"""How long steps take, and how much of it is waiting for data."""

import time
from collections.abc import Iterable, Iterator

from cetnet.models.batch import Batch
from cetnet.trainer.processes.hang_detector import READING, HangDetector


class TimedBatches(Iterator[Batch]):
    """Counts the seconds that the consumer waits for batches, and tells the hang detector of it."""

    def __init__(self, batches: Iterable[Batch], hang_detector: HangDetector) -> None:
        self._batches, self._hang_detector = iter(batches), hang_detector
        self.waited = 0.0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            with self._hang_detector.while_doing(READING):
                return next(self._batches)
        finally:
            self.waited += time.perf_counter() - start


class Clock:
    """Times laps between log points, and the whole run: `seconds` are those before `step`."""

    def __init__(self, step: int, seconds: float, batches: TimedBatches) -> None:
        self._before, self._batches = seconds, batches
        self._start = self._lap_start = time.perf_counter()
        self._lap_step, self._lap_waited = step, 0.0

    def seconds(self) -> float:
        """Seconds spent training, since the run began."""
        return self._before + time.perf_counter() - self._start

    def lap(self, step: int) -> dict[str, float]:
        """Steps, seconds per step and share of waiting for data since the last lap; seconds of the run."""
        now, waited = time.perf_counter(), self._batches.waited
        elapsed, steps = now - self._lap_start, step - self._lap_step
        result = {
            "steps": steps,
            "seconds": self.seconds(),
            "seconds_per_step": elapsed / steps,
            "data_wait": (waited - self._lap_waited) / elapsed,
        }
        self._lap_start, self._lap_step, self._lap_waited = now, step, waited
        return result
