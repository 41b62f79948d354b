"""Start `cetnet` again: in one process, or in several of this machine, as torchrun does."""

import logging
import os
import signal
import sys
from uuid import uuid4

from cetnet.trainer.processes.signals import pass_on_signals

CETNET = (sys.executable, "-P", "-m", "cetnet")
"""The command line in this interpreter. `-P`: nothing is imported from the folder one stands in."""


def world_size() -> int:
    """Number of processes, known before the process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch(arguments: list[str], nproc: int) -> int:
    """Run `cetnet ARGUMENTS` in `nproc` processes of this machine, as torchrun does; returns the exit code.

    SIGTERM and SIGUSR1 are passed on to the processes, whose exit code then says what came of it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A worker that fails says why itself; the launcher's own account of it helps nobody.
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
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",  # at SIGTERM torchrun would give the processes 30 seconds
    )
    pass_on_signals()
    try:
        elastic_launch(config, CETNET[0])(*CETNET[1:], *arguments)
    except ChildFailedError as error:
        if said := [failure.exitcode for failure in error.failures.values() if failure.exitcode > 0]:
            return said[0]  # a process that was not killed has said why it ended, or who is gone
        first = error.get_first_failure()[1]
        name = signal.Signals(-first.exitcode).name
        guess = "; out of memory?" if name == "SIGKILL" else ""
        print(f"cetnet: process {first.local_rank} was killed by {name}{guess}", file=sys.stderr)
        return 128 - first.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
