"""Batches across requests: whoever waits while the model is busy is scored together next."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cetnet.trainer.console import console
from cetnet.trainer.errors import printable
from cetnet.trainer.failures import explain
from cetnet.trainer.serve.metrics import Metrics
from cetnet.trainer.serve.requests import Request
from cetnet.trainer.serve.tensors import BadRequest

_PADDED = 1 << 18  # rows times the longest list of a batch: one of thousands would make thousands of all


class Busy(RuntimeError):
    """As many rows wait as may."""


class Failed(RuntimeError):
    """The model gave no answer: a fault of the server or of the export, told in its log."""


@dataclass(eq=False)
class _Waiting:
    request: Request
    answer: "asyncio.Future[NDArray[np.float32]]"
    since: float = field(default_factory=time.perf_counter)


class Batches:
    """Scores requests, those that wait together, in threads.

    A batch starts as soon as a thread is free; unless it is full, not sooner than `wait` after its first.
    Threads that are free together share what waits.

    Args:
        metrics: told of batches.
        max_rows: of a batch; a larger request is one alone.
        max_waiting: rows that may wait.
        threads: batches that are scored at once.
        wait: seconds.
    """

    def __init__(
        self, metrics: Metrics, *, max_rows: int, max_waiting: int, threads: int = 1, wait: float = 0.0
    ) -> None:
        self._metrics, self._max_rows, self._max_waiting = metrics, max_rows, max_waiting
        self._wait, self._idle = wait, threads
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0
        self._changed = asyncio.Event()
        self._freed = asyncio.Event()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="model")

    async def score(self, request: Request) -> NDArray[np.float32]:
        """Probabilities `[outputs, rows]`; a caller that is cancelled is forgotten, unless its batch has started.

        Raises:
            Busy: too many rows wait.
            BadRequest: a value isn't what its column holds.
            Failed: the model failed.
        """
        if self._rows and self._rows + request.rows > self._max_waiting:
            raise Busy(f"{self._rows} rows wait already; try again, or ask another server")
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._count(request.rows)
        self._changed.set()
        try:
            return await waiting.answer
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._count(-request.rows)

    async def run(self) -> None:
        """Score what comes, for ever."""
        async with asyncio.TaskGroup() as scoring:
            while True:
                await self._changed.wait()
                await self._fill()
                while not self._idle:
                    self._freed.clear()
                    await self._freed.wait()
                if batch := self._take():
                    self._idle -= 1
                    scoring.create_task(self._answer(batch))

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        now = time.perf_counter()
        for each in batch:
            self._metrics.queue_seconds.observe(now - each.since)
        requests = [each.request for each in batch]
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._threads, self._score, requests)
        self._idle += 1
        self._freed.set()
        for each, answer in zip(batch, answers, strict=True):
            if each.answer.done():  # cancelled
                continue
            if isinstance(answer, Exception):
                each.answer.set_exception(answer)
            else:
                each.answer.set_result(answer)

    def _count(self, rows: int) -> None:
        self._rows += rows
        self._metrics.waiting_rows.set(self._rows)
        self._metrics.waiting_requests.set(len(self._waiting))

    async def _fill(self) -> None:
        """Wait for more rows, not longer than `wait` after the first request came."""
        while self._wait and self._waiting and self._rows < self._max_rows:
            left = self._waiting[0].since + self._wait - time.perf_counter()
            if left <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """The requests at the front that one version scores and one batch holds: a free thread's share of them."""
        batch: list[_Waiting] = []
        rows = longest = 0
        most = min(self._max_rows, -(-self._rows // self._idle))
        while self._waiting:
            request = self._waiting[0].request
            rows, longest = rows + request.rows, max(longest, request.longest)
            fits = rows <= most and rows * longest <= _PADDED
            if batch and not (fits and request.version is batch[0].request.version):
                break
            batch.append(self._waiting.popleft())
        self._count(-sum(each.request.rows for each in batch))
        if self._waiting:
            self._changed.set()
        else:
            self._changed.clear()
        return batch

    def _score(self, requests: Sequence[Request]) -> list[NDArray[np.float32] | Exception]:
        """An answer or what is wrong, for each; in one of the threads. If they fail together, each is tried alone."""
        try:
            return self._scored(requests)
        except Exception as error:
            if len(requests) > 1:
                return [answer for request in requests for answer in self._score([request])]
            if isinstance(error, BadRequest):
                return [error]
            console.print(f"no answer: {explain(error)[0]}", style="bold red")
            return [Failed("the model gave no answer; the server's log says why")]

    def _scored(self, requests: Sequence[Request]) -> list[NDArray[np.float32] | Exception]:
        metrics, version = self._metrics, requests[0].version
        alike: dict[pa.Schema, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(request.table.schema, []).append(number)
        order = [number for numbers in alike.values() for number in numbers]
        with metrics.encode_seconds.time():
            try:
                # Of many rows it takes hardly longer than of a few.
                parts = [
                    version.scorer.encoder.encode(pa.concat_tables(requests[n].table for n in numbers))
                    for numbers in alike.values()
                ]
            except ValueError as error:
                raise BadRequest(printable(str(error))) from error
            inputs = _together(parts)
        with metrics.model_seconds.time():
            scores = version.scorer.run(inputs)
        if not np.isfinite(scores).all():
            raise FloatingPointError("a probability is no number")
        self._observe(requests, inputs, scores)
        ends = np.cumsum([requests[number].rows for number in order])
        answers = dict(zip(order, np.split(scores, ends[:-1], axis=1), strict=True))
        return [answers[number] for number in range(len(requests))]

    def _observe(
        self, requests: Sequence[Request], inputs: dict[str, NDArray], scores: NDArray[np.float32]
    ) -> None:
        """Tell the metrics what was in a batch."""
        metrics, version = self._metrics, requests[0].version
        rows = scores.shape[1]
        metrics.batch_rows.observe(rows)
        metrics.batch_requests.observe(len(requests))
        metrics.rows.inc(rows)
        for name, total in zip(version.outputs, scores.sum(1, dtype=np.float64), strict=True):
            metrics.predictions.labels(name).inc(float(total))
        missing = {name: sum(request.missing[name] for request in requests) for name in version.columns}
        for name, count in missing.items():
            metrics.missing.labels(name).inc(count)
        for name, features in version.features.items():
            ids = inputs[name]
            if ids.dtype != np.int64:
                continue
            axes = (0, *range(2, ids.ndim))
            known, given = (ids > 0).sum(axes), (ids >= 0).sum(axes)
            for feature, positive, looked_up in zip(features, known, given, strict=True):
                if ids.ndim == 2:  # a missing value is looked up, too: it is row 0
                    looked_up -= missing[version.raw[feature]]
                metrics.values.labels(feature).inc(int(looked_up))
                metrics.unknown.labels(feature).inc(max(0, int(looked_up - positive)))


def _together(parts: Sequence[dict[str, NDArray]]) -> dict[str, NDArray]:
    """The inputs of several tables as those of one, lists filled up with -1 to the longest."""
    if len(parts) == 1:
        return dict(parts[0])
    joined = {}
    for name, first in parts[0].items():
        arrays = [part[name] for part in parts]
        if first.ndim == 3:
            longest = max(array.shape[2] for array in arrays)
            arrays = [
                np.pad(array, ((0, 0), (0, 0), (0, longest - array.shape[2])), constant_values=-1)
                for array in arrays
            ]
        joined[name] = np.concatenate(arrays)
    return joined
