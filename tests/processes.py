"""Run functions in real process groups (gloo) of this machine."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from cetnet.trainer.check_run import check_run
from cetnet.trainer.config import RunConfig
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.train import train


def run_processes(function: Callable[..., Any], world_size: int, *args: Any, hosts: int = 1) -> None:
    """Call `function(processes, *args)` in `world_size` new processes; raises if one of them fails.

    The processes believe themselves on `hosts` hosts, the same number on each.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (world_size, world_size // hosts, port, function, args), nprocs=world_size)


def _worker(
    rank: int,
    world_size: int,
    local_world_size: int,
    port: int,
    function: Callable[..., Any],
    args: tuple,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % local_world_size),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    with process_group("cpu") as processes:
        function(processes, *args)


def train_all(processes: Processes, settings: list[dict[str, Any]], resume: bool = False) -> None:
    """Train one run after the other; each is a RunConfig as a plain mapping."""
    for setting in settings:
        train(check_run(RunConfig.model_validate(setting), processes.world_size, resume), processes)


INTERFORMER = {
    "kind": "interformer",
    "embedding_dim": 8,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_units": [16],
    "dot_hidden_units": [8],
}
TRAINING = {"log_every": 1, "seed": 7, "ne_window_steps": 10, "device": "cpu"}


def run_settings(data: Path, run_dir: Path, **sections: Any) -> dict[str, Any]:
    """A small CETNet run of all three kinds of component; `sections` replace whole sections."""
    return {
        "run_dir": str(run_dir),
        "data": {"path": str(data), "batch_size": 64, "lanes": 4, "shuffle_rows": 100},
        "model": {
            "components": {
                "interformer": INTERFORMER,
                "dhen": {
                    "kind": "dhen",
                    "embedding_dim": 4,
                    "num_layers": 1,
                    "hidden_units": [16],
                    "dot_hidden_units": [8],
                },
                "dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [16], "embedding_std": 0.05},
            },
            "collaboration": {"weight": 0.5},
        },
        "training": TRAINING,
        "evaluation": {"splits": ["test"]},
        **sections,
    }


def early_stopping_settings(data: Path, run_dir: Path, **sections: Any) -> dict[str, Any]:
    """The same, for six epochs at a rate at which the validation split's NE soon rises."""
    return run_settings(
        data,
        run_dir,
        **{
            "optimizer": {"dense": {"kind": "adam", "lr": 0.05}},
            "training": {"epochs": 6, "seed": 7, "device": "cpu"},
            "evaluation": {
                "splits": ["test"],
                "every_epoch": True,
                "early_stopping": {"monitor": "ne/fused", "patience": 2},
            },
            **sections,
        },
    )
