"""What a checkpoint costs: how long a save stalls training, and how fast it is written and read, against the disk.

    make data/demo/schema.yaml
    torchrun --standalone --nproc-per-node 2 -m cetnet.benchmarks.speed.checkpoint_cost --out runs/checkpoint_cost

For the model of configs/demo.yaml, and for the same with many more users. The stall: windows of steps alternate, one
that begins with a save and one without. Both are timed to the end of their last step, the one with the save to its
publication too. The difference holds the copy, what the background write takes from the steps, and waiting for it.

The bandwidth: a save, a load, and a file of as many bytes that rank 0 writes (with `fsync`) and reads take turns,
with nothing beside them, in the same folder. What is read was dropped from the page cache before.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from rich.table import Table

from cetnet.benchmarks.command import run_command
from cetnet.trainer.checkpoint.checkpoints import Checkpoints, load_checkpoint, verify_checkpoint
from cetnet.trainer.checkpoint.manifest import sync
from cetnet.trainer.config import load_config
from cetnet.trainer.console import console, output
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.session import Session, build_session, run_pipeline

BLOCK = os.urandom(1 << 20)
NAME = "step-000000001"
Save = Callable[[], None]


def main(
    out: Annotated[Path, typer.Option(help="New folder on the disk to measure; removed in the end.")],
    config: Annotated[Path, typer.Option(help="Experiment file of the model.")] = Path("configs/demo.yaml"),
    users: Annotated[int, typer.Option(help="Rows of the table `user` in the larger model.")] = 4_000_000,
    pairs: Annotated[int, typer.Option(help="Windows with a save, and as many without.")] = 10,
    window: Annotated[int, typer.Option(help="Steps in a window.")] = 40,
    rounds: Annotated[int, typer.Option(help="Saves and loads that are timed alone.")] = 5,
) -> None:
    """Measure what a save costs training, and the bandwidth of save and load; alone or under torchrun.

    All figures are medians. The stall is also given in steps, which depends
    less on what else the machine does, and as a share of 60 seconds.

    Example: python -m cetnet.benchmarks.speed.checkpoint_cost --out runs/checkpoint_cost
    """
    settings = load_config(config)
    table = Table("", title=f"{config.stem}: {pairs} pairs of windows of {window} steps, {rounds} rounds")
    columns: list[list[str]] = []
    with process_group("cpu") as processes:
        dataset = Dataset(settings.data.path, settings.data.split)
        for rows in (dataset.schema.tables["user"], users):
            schema = dataset.schema.model_copy(update={"tables": dataset.schema.tables | {"user": rows}})
            session = build_session(settings, schema, processes)
            reader = Reader.of(settings.data, dataset, rank=processes.rank, world_size=processes.world_size)
            checkpoints = Checkpoints(out, keep=1)

            def save(session: Session = session, checkpoints: Checkpoints = checkpoints) -> None:
                checkpoints.save(NAME, session.model, session.optimizer, {"progress": {}, "ne": {}})

            if processes.is_main:
                console.print(f"{rows:,} users")
                out.mkdir(parents=True)
            dist.barrier()
            stall = measure_stall(session, reader, save, checkpoints.wait, pairs, window)
            rates = measure_bandwidth(session, out, save, checkpoints.wait, rounds)
            checkpoints.close()
            if processes.is_main:
                shutil.rmtree(out)
            table.add_column(f"{rows:,} users", justify="right")
            columns.append([*stall, *rates])
    if processes.is_main:
        names = [
            "a step",
            "in save(): the copy",
            "stall of a save",
            "in steps",
            "of a minute",
            "checkpoint",
            "save",
            "disk: write and fsync",
            "load",
            "disk: read",
            "CPU time of a save, rank 0",
        ]
        for name, *values in zip(names, *columns, strict=True):
            table.add_row(name, *values)
        output.print(table)


def measure_stall(
    session: Session, reader: Reader, save: Save, wait: Save, pairs: int, window: int
) -> list[str]:
    """Time of a step without a save, of the call of save, and what a save adds to a window, in three units."""
    session.model.train()
    steps = run_pipeline(session, reader.batches(0, 0, (2 * pairs + 1) * window))

    def train() -> None:
        for _ in range(window):
            next(steps)

    train()  # the pipeline fills, caches warm
    plain: list[float] = []
    calls: list[float] = []
    stalls: list[float] = []
    for _ in range(pairs):
        with timed(plain):
            train()
        start = time.perf_counter()
        with timed(calls):
            save()
        train()
        wait()
        stalls.append(time.perf_counter() - start - plain[-1])
    return [
        f"{1000 * median(plain) / window:.1f} ms",
        f"{1000 * median(calls):.0f} ms",
        f"{1000 * median(stalls):.0f} ms ({1000 * min(stalls):.0f} to {1000 * max(stalls):.0f})",
        f"{median(stalls) / median(plain) * window:.1f}",
        f"{median(stalls) / 60:.2%}",
    ]


def measure_bandwidth(session: Session, folder: Path, save: Save, wait: Save, rounds: int) -> list[str]:
    """Bytes of a checkpoint, bytes a second of save, of writing, of load and of reading, CPU seconds of a save."""
    times: dict[str, list[float]] = {"save": [], "write": [], "load": [], "read": []}
    cpu: list[float] = []
    checkpoint, plain = folder / NAME, folder / "plain"
    for _ in range(rounds):
        dist.barrier()
        with timed(times["save"]), timed(cpu, time.process_time):
            save()
            wait()
            dist.barrier()
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        if dist.get_rank() == 0:
            with timed(times["write"]):
                write(plain, size)
            for path in (plain, *checkpoint.iterdir()):
                forget(path)
        dist.barrier()
        with timed(times["load"]):
            verify_checkpoint(checkpoint)
            load_checkpoint(checkpoint, session.model, session.optimizer)
            dist.barrier()
        if dist.get_rank() == 0:
            with timed(times["read"]):
                read(plain)
            plain.unlink()
    rates = [f"{size / median(seconds) / 1e6:,.0f} MB/s" if seconds else "" for seconds in times.values()]
    return [f"{size / 1e6:,.1f} MB", *rates, f"{median(cpu):.2f} s"]


@contextmanager
def timed(seconds: list[float], clock: Callable[[], float] = time.perf_counter) -> Iterator[None]:
    """Append the seconds that the block takes."""
    start = clock()
    yield
    seconds.append(clock() - start)


def write(path: Path, size: int) -> None:
    """Write so many bytes, and wait until they are on the disk."""
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, len(BLOCK)):
            file.write(BLOCK[: size - start])
    sync(path)


def read(path: Path) -> None:
    """Read a file to its end."""
    with path.open("rb", buffering=0) as file:
        while file.read(len(BLOCK)):
            pass


def forget(path: Path) -> None:
    """Drop a file, which is on the disk, from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_command(main)
