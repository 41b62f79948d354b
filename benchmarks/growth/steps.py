"""Training steps of a model on random batches, timed in processes of their own.

What is timed is the trainer's step: plan, sharded tables, pipeline, guard and optimizers as `cetnet train` builds
them. What is not: the reader (batches are made before the clock starts, each is used once), metrics, logging and
checkpoints.
"""

import math
import multiprocessing
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cetnet.benchmarks.growth.axes import Point, Timing
from cetnet.models.batch import Batch
from cetnet.models.schema import Feature, Schema
from cetnet.trainer.console import quieten
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.session import build_session, run_pipeline

_AHEAD = 3
"""Batches that the pipeline takes before its first step ends."""

_WARM_UP = 2
_SECONDS = 0.4
"""So long lasts a round of a point, or one step if that is longer."""


def random_batch(schema: Schema, rows: int, length_sigma: float, generator: torch.Generator) -> Batch:
    """`rows` rows whose ids are uniform over their tables: no id is looked up more often than chance has it.

    Lists of a feature have its `mean_length`, rounded, or lengths from a lognormal of that mean, cut at `max_length`.
    """
    values, lengths = [], []
    for feature in schema.id_features:
        lengths.append(_lengths(feature, rows, length_sigma, generator))
        total = int(lengths[-1].sum())
        values.append(torch.randint(schema.tables[str(feature.table)], (total,), generator=generator))
    return Batch(
        sparse=KeyedJaggedTensor(
            keys=[feature.name for feature in schema.id_features],
            values=torch.cat(values),
            lengths=torch.cat(lengths),
        ),
        dense=torch.randn(rows, len(schema.dense_features), generator=generator),
        label=torch.randint(2, (rows,), generator=generator).float(),
        weight=torch.ones(rows),
        row=torch.arange(rows),
    )


def _lengths(feature: Feature, rows: int, sigma: float, generator: torch.Generator) -> Tensor:
    """`[rows]` int32."""
    if feature.kind == "categorical":
        return torch.ones(rows, dtype=torch.int32)
    normal = torch.randn(rows, generator=generator)
    lengths = feature.mean_length * (sigma * normal - sigma**2 / 2).exp()
    return lengths.round().clamp(max=feature.max_length or math.inf).int()


class Stepper:
    """A model in training: every rank has one."""

    def __init__(self, point: Point, device: str, processes: Processes) -> None:
        start = time.perf_counter()
        self._session = build_session(point.config(device), point.schema, processes)
        self.build_seconds = time.perf_counter() - start
        self._processes = processes
        generator = torch.Generator().manual_seed(processes.rank)
        rows = point.batch_size // processes.world_size
        self._make = partial(random_batch, point.schema, rows, point.length_sigma, generator)
        self._made = deque(self._make() for _ in range(_AHEAD))
        self._session.model.train()
        self._steps = run_pipeline(self._session, self._batches())

    def time(self, steps: int) -> float:
        """Seconds of so many steps; a collective."""
        self._made.extend(self._make() for _ in range(steps))
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            next(self._steps)
            if fault := self._session.guard.fault(self._processes.cpu_group):
                raise RuntimeError(fault.what)
        self._wait()
        return time.perf_counter() - start

    def _batches(self) -> Iterator[Batch]:
        while True:
            yield self._made.popleft()

    def _wait(self) -> None:
        if self._processes.device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier(self._processes.cpu_group)


class Workers:
    """Processes, one a rank, in which models train: step by step, when asked to.

    Args:
        points: the models; all have the same `ranks`.
        device: `training.device`.
    """

    def __init__(self, points: Sequence[Point], device: str) -> None:
        ranks = points[0].ranks
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        # A server that has imported everything forks the processes: each starts at once, and with nothing else.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._points, self._connections, self._processes = points, [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, rank, ranks, port, points, device), daemon=True
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        self.build_seconds: list[float] = self._answers()[0]

    def time(self, index: int, steps: int) -> float:
        """Seconds of so many steps of the point with this index."""
        for connection in self._connections:
            connection.send((index, steps))
        return float(self._answers()[0])

    def close(self) -> int:
        """End the processes; returns `Timing.peak_bytes`."""
        for connection in self._connections:
            connection.send(None)
        peak = sum(self._answers())
        for process in self._processes:
            process.join()
        return peak

    def kill(self) -> None:
        """End the processes, whatever they do."""
        for process in self._processes:
            process.kill()
            process.join()

    def _answers(self) -> list[Any]:
        try:
            return [connection.recv() for connection in self._connections]
        except EOFError:
            named = ", ".join(f"{point.line} {point.x:g}" for point in self._points)
            raise ChildProcessError(
                f"a process of {named} ended; what it said is above, or it was killed"
            ) from None


def _work(
    connection: Connection, rank: int, ranks: int, port: int, points: Sequence[Point], device: str
) -> None:
    quieten()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    with process_group(device) as processes:
        steppers = [Stepper(point, device, processes) for point in points]
        connection.send([stepper.build_seconds for stepper in steppers])
        while request := connection.recv():
            index, steps = request
            connection.send(steppers[index].time(steps))
        on_gpu = processes.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if on_gpu else getrusage(RUSAGE_SELF).ru_maxrss * 1024
        connection.send(peak)


def measure(points: Sequence[Point], rounds: int, device: str, together: bool = False) -> list[Timing]:
    """Time the points in turn, `rounds` times: so what else the machine does is seen in the spread of each.

    Args:
        points: to be timed; all are in memory at once.
        rounds: how often each.
        device: `training.device`.
        together: in one process, instead of one each; `peak_bytes` are then those of all.

    Raises:
        ChildProcessError: a process failed.
    """
    groups = [points] if together else [[point] for point in points]
    all_workers: list[Workers] = []
    try:
        for group in groups:
            all_workers.append(Workers(group, device))
        turns = [
            (workers, i)
            for workers, group in zip(all_workers, groups, strict=True)
            for i in range(len(group))
        ]
        timings = [Timing(workers.build_seconds[i]) for workers, i in turns]
        for timing, (workers, i) in zip(timings, turns, strict=True):
            workers.time(i, _WARM_UP)
            timing.steps = max(1, math.ceil(_SECONDS / workers.time(i, 1)))
        for _ in range(rounds):
            for timing, (workers, i) in zip(timings, turns, strict=True):
                timing.seconds.append(workers.time(i, timing.steps) / timing.steps)
        peaks = {workers: workers.close() for workers in all_workers}
        for timing, (workers, _) in zip(timings, turns, strict=True):
            timing.peak_bytes = peaks[workers]
        return timings
    finally:
        for workers in all_workers:
            workers.kill()
