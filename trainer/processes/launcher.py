"""Start `cetnet` again: as a command, or in forks of a process that has the libraries loaded."""

import atexit
import importlib
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from types import FrameType
from uuid import uuid4

from cetnet.trainer.processes.signals import SIGNALS, pass_on_signals
from cetnet.trainer.versions import check_loading, check_versions

CETNET = (sys.executable, "-P", "-m", "cetnet")
"""The command line in this interpreter. `-P`: nothing is imported from the folder one stands in."""

_LIBRARIES = (
    "cetnet.trainer.cli",
    "cetnet.trainer.check_run",
    "cetnet.trainer.train",
    "cetnet.trainer.evaluate",
)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_GRACE = 30.0  # seconds in which the ranks end once one has failed, before they are killed


def world_size() -> int:
    """Number of processes, known before the process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def share_cores(nproc: int) -> dict[str, str]:
    """The environment that gives each of `nproc` processes its cores; it is read while the libraries are loaded."""
    if nproc == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // nproc))}


def load_libraries() -> None:
    """Import what a run needs, so that processes forked from this one start at once; computes nothing.

    Raises UserError if the libraries don't belong together.
    """
    check = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.get(check)
    os.environ[check] = "1"  # FBGEMM asks for GPUs as it is imported, after which no fork could use them
    try:
        check_versions()
        check_loading()
        for name in _LIBRARIES:
            importlib.import_module(name)
    finally:
        if before is None:
            del os.environ[check]
        else:
            os.environ[check] = before


def run_forked(arguments: list[str]) -> None:
    """Be `cetnet ARGUMENTS` in a process forked for it: with the exit code, output and end of a new one."""
    import torch

    if torch.cuda._is_in_bad_fork():  # CUDA was used before the fork
        os.execv(CETNET[0], [*CETNET, *arguments])
    sys.argv = ["cetnet", *arguments]
    try:
        runpy.run_module("cetnet", run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # multiprocessing doesn't


def launch(arguments: list[str], nproc: int, check: Callable[[], object] | None = None) -> int:
    """Run `cetnet ARGUMENTS` in `nproc` processes of this machine, forked from this one; returns the exit code.

    Their environment describes them as torchrun's does. This process keeps the store where they meet.
    SIGTERM and SIGUSR1 are passed on to them, whose exit code then says what came of it.

    Args:
        arguments: Of the command line.
        nproc: Number of processes.
        check: Called before, once, in a process of its own, to which it is sent; what it raises is raised here.
    """
    os.environ |= share_cores(nproc)
    load_libraries()
    from torch.distributed import TCPStore

    context = get_context("fork")
    if check is not None:
        with ProcessPoolExecutor(1, context) as pool:  # a fork loses the threads that it starts, or CUDA
            pool.submit(check).result()
    pass_on_signals()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        shared = {
            "WORLD_SIZE": str(nproc),
            "LOCAL_WORLD_SIZE": str(nproc),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": uuid4().hex,
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }
        ranks = [
            context.Process(
                target=_be_rank,
                args=(arguments, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, listener),
            )
            for rank in range(nproc)
        ]
        for rank in ranks:
            rank.start()
        # Last, as it starts threads.
        store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
    code = _wait(ranks)
    del store
    return code


def _be_rank(arguments: list[str], environment: dict[str, str], listener: socket.socket) -> None:
    listener.close()
    os.setsid()  # the terminal's signals go to the launcher, which passes them on
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.environ |= environment
    run_forked(arguments)


def _wait(ranks: list[ForkProcess]) -> int:
    """Wait for the ranks, ending all once one has failed; the exit code that tells what happened."""
    told: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        for rank in ranks:
            if rank.is_alive() and rank.pid:
                os.kill(rank.pid, number)

    for number in _FROM_TERMINAL:
        signal.signal(number, pass_on)
    while not told and not any(rank.exitcode for rank in ranks) and any(rank.is_alive() for rank in ranks):
        time.sleep(0.1)
    first = next((number for number, rank in enumerate(ranks) if rank.exitcode), None)
    if not told:
        for rank in ranks:
            rank.terminate()
    deadline = time.monotonic() + _GRACE
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
        rank.kill()
        rank.join()
    if told:
        return 128 + told[0]
    if said := [rank.exitcode for rank in ranks if rank.exitcode and rank.exitcode > 0]:
        return said[0]  # a process that was not killed has said why it ended, or who is gone
    if first is None:
        return 0
    killed_by = signal.Signals(-(ranks[first].exitcode or 0))
    guess = "; out of memory?" if killed_by == signal.SIGKILL else ""
    print(f"cetnet: process {first} was killed by {killed_by.name}{guess}", file=sys.stderr)
    return 128 + killed_by
