"""Processes: who am I, and how do I talk to the others."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Timer
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import say
from cetnet.trainer.processes.hang_detector import HangDetector
from cetnet.trainer.processes.malloc import keep_freed_memory
from cetnet.trainer.versions import installed_versions

T = TypeVar("T")

# How long the ranks wait for each other to start, and in a collective: hangs are for the detector to find.
_START, PATIENCE = timedelta(minutes=10), timedelta(hours=6)
_SLOW = 10.0  # seconds after which a process says that it waits


@dataclass(frozen=True)
class Processes:
    """This process among the others.

    Attributes:
        rank: global rank.
        world_size: number of processes.
        local_world_size: number of processes on this host.
        device: where this process computes.
        cpu_group: gloo group for results that are gathered on the CPU.
        hang_detector: told what this process does, finds one that hangs.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    cpu_group: dist.ProcessGroup
    hang_detector: HangDetector

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0


def on_every_rank(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """What a local action returns on each rank, on every rank: a collective.

    Raises:
        OSError, UserError: on every rank, the first that it raised on any, so that none waits for one that gave up.
    """
    result: T | None = None
    problem: OSError | UserError | None = None
    try:
        result = action()
    except (OSError, UserError) as error:
        problem = error
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (result, problem), group=group)
    if first := next((problem for _, problem in everyone if problem is not None), None):
        raise first
    return [result for result, _ in everyone]


def on_main(action: Callable[[], object], group: dist.ProcessGroup) -> None:
    """Do something on rank 0 and wait for it; what it raises is raised on every rank, as by `on_every_rank`."""

    def act() -> None:
        if dist.get_rank(group) == 0:
            action()

    on_every_rank(act, group)


def resolve_device(name: str) -> torch.device:
    """`auto` takes this process's GPU if there is one and fbgemm-gpu is its CUDA build.

    Raises:
        UserError: `cuda` is asked for in vain, or a host has more processes than GPUs.
    """
    cuda_build = "fbgemm-gpu-cpu" not in installed_versions()["fbgemm-gpu"]
    if name == "cuda" and not (torch.cuda.is_available() and cuda_build):
        remedy = "fbgemm-gpu-cpu is installed: install '.[cuda]' into a fresh environment"
        why = "no GPU is visible here" if cuda_build else remedy
        raise UserError(f"training.device=cuda, but {why}; or use training.device=cpu")
    if name == "cpu" or not (torch.cuda.is_available() and cuda_build):
        return torch.device("cpu")
    local_world_size, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if local_world_size > gpus:
        raise UserError(f"{local_world_size} processes on a host of {gpus} GPUs; start one process per GPU")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: str, timeout_minutes: float = 10) -> Iterator[Processes]:
    """Join the group that torchrun describes in the environment, or be alone.

    A process that stops answering for `timeout_minutes`, or keeps the others waiting for that long, ends them all.
    """
    keep_freed_memory()
    resolved = resolve_device(device)
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    backend = "nccl" if resolved.type == "cuda" else "gloo"
    store: dist.Store = dist.HashStore()
    rank, size = 0, 1
    os.environ.setdefault("LOCAL_WORLD_SIZE", "1")  # TorchRec asks for it, and warns where it is missing
    if "RANK" in os.environ:
        with _said_if_slow():
            store, rank, size = _meet()
    hang_detector = HangDetector(store, rank, size, timeout_minutes)
    hang_detector.start()
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert dist.group.WORLD is not None
        hang_detector.count_collectives(dist.group.WORLD, cpu_group)
        yield Processes(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            device=resolved,
            cpu_group=cpu_group,
            hang_detector=hang_detector,
        )
    except Exception as error:
        if code := hang_detector.exit_code_in_silence(error):
            sys.exit(code)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        hang_detector.close()


def _meet() -> tuple[dist.Store, int, int]:
    """The store that all ranks of this start share, this one's rank, and their number.

    Raises UserError if there is no store at MASTER_ADDR and MASTER_PORT, or not all ranks come.
    """
    try:
        store, rank, size = next(rendezvous("env://", timeout=_START))
        return _fresh(store, rank, size, _START), rank, size
    except dist.DistError as error:
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        why = " ".join(str(error).split("\n")[0].split())
        if "EADDRINUSE" in why:
            raise UserError(
                f"MASTER_PORT={port} is in use on this host; give another, the same to all ranks"
            ) from error
        raise UserError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} found no other at MASTER_ADDR={address}, "
            f"MASTER_PORT={port} ({why}); look at what rank 0 printed, and whether its host can be reached"
        ) from error


@contextmanager
def _said_if_slow() -> Iterator[None]:
    """Say after some seconds for whom this process waits, and for how long it will."""
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    others = f"for the other ranks, at {address}" if rank == "0" else f"for rank 0, at {address}, or others"
    line = f"rank {rank} of {size} waits {others}; for {_START.total_seconds() / 60:.0f} minutes at most"
    timer = Timer(_SLOW, say, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _fresh(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """The part of the store that only the processes of this start know.

    torchrun's store outlives its processes: after a restart they would find the addresses of those before them
    (pytorch issue 135712). Its count of restarts doesn't tell starts apart, as a host that joins counts anew. So
    rank 0 makes up a name, and tells it to all that it hears of until all have answered under that name.

    Raises UserError if they don't within `timeout`.
    """
    me = uuid4().hex
    if rank:
        store.set(f"cetnet/hello/{rank}", me)
        name = store.get(f"cetnet/welcome/{me}").decode()
        store.set(f"cetnet/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    others, deadline = range(1, size), time.monotonic() + timeout.total_seconds()
    while missing := [other for other in others if not store.check([f"cetnet/{me}/{other}"])]:
        if time.monotonic() > deadline:
            raise UserError(
                f"rank {missing[0]} of {size} did not start within {timeout}; look at what it printed"
            )
        for other in missing:
            hello = f"cetnet/hello/{other}"
            if store.check([hello]):  # perhaps of an earlier start, until the process says hello
                store.set(f"cetnet/welcome/{store.get(hello).decode()}", me)
        time.sleep(0.05)
    return dist.PrefixStore(me, store)
