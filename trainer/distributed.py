"""Processes: who am I, how do I talk to the others, and how are they started on one machine."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import torch
import torch.distributed as dist

from trainer.errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process among the others.

    Attributes:
        rank: global rank.
        world_size: number of processes.
        local_world_size: number of processes on this host.
        device: where this process computes.
        cpu_group: gloo group for results that are gathered on the CPU.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    cpu_group: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0


def world_size() -> int:
    """Number of processes, known before the process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is rank 0, known before the process group exists."""
    return os.environ.get("RANK", "0") == "0"


def resolve_device(name: str) -> torch.device:
    """`auto` takes this process's GPU if there is one; raises UserError if `cuda` is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device=cuda, but no GPU is visible here; use training.device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: str) -> Iterator[Processes]:
    """Join the group that torchrun describes in the environment, or be alone."""
    resolved = resolve_device(device)
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    backend = "nccl" if resolved.type == "cuda" else "gloo"
    timeout = timedelta(minutes=10)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        yield Processes(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            device=resolved,
            cpu_group=dist.new_group(backend="gloo", timeout=timeout),
        )
    finally:
        dist.destroy_process_group()


def launch(arguments: list[str], nproc: int) -> int:
    """Run `cetnet ARGUMENTS` in `nproc` processes of this machine, as torchrun does; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The failing worker has said what was wrong; the launcher's own account of it helps nobody.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "trainer.cli", *arguments)
    except ChildFailedError as error:
        return max(failure.exitcode for failure in error.failures.values()) or 1
    return 0
