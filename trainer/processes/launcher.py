"""Start `cetnet` again: as a command, or in forks of a process that has the libraries loaded."""

import atexit
import ctypes
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkProcess
from types import FrameType
from uuid import uuid4

from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import tell
from cetnet.trainer.processes.signals import SIGNALS, pass_on_signals
from cetnet.trainer.versions import check_loading, check_versions

CETNET = (sys.executable, "-P", "-m", "cetnet")
"""The command line in this interpreter. `-P`: nothing is imported from the folder one stands in."""

FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

_LIBRARIES = ("cetnet.trainer.check_run", "cetnet.trainer.train", "cetnet.trainer.evaluate")
_GRACE = 30.0  # seconds in which the ranks end once one has failed, before they are killed
_PR_SET_PDEATHSIG = 1


def share_cores(nproc: int) -> dict[str, str]:
    """The environment that gives each of `nproc` processes its cores; it is read while the libraries are loaded."""
    if nproc == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // nproc))}


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


def run_forked(main: Callable[[], object], arguments: list[str]) -> None:
    """Be `cetnet ARGUMENTS` in a process forked for it: with the exit code, output and end of a new one.

    `main` is the command line, which imports this and not the other way round.
    """
    import torch

    if torch.cuda._is_in_bad_fork():  # CUDA was used before the fork
        os.execv(CETNET[0], [*CETNET, *arguments])
    sys.argv = ["cetnet", *arguments]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing doesn't


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Let signals wait while processes are forked, so that none comes to a process that isn't known yet."""
    numbers = {*SIGNALS, *FROM_TERMINAL}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def launch(
    main: Callable[[], object], arguments: list[str], nproc: int, check: Callable[[], object] | None = None
) -> int:
    """Run `cetnet ARGUMENTS` in `nproc` processes of this machine, forked from this one; returns the exit code.

    Their environment describes them as torchrun's does. This process keeps the store where they meet.
    SIGTERM and SIGUSR1 are passed on to them, whose exit code then says what came of it. If this process is killed,
    they are told to stop.

    Args:
        main: The command line; as `run_forked` has it.
        arguments: Its arguments.
        nproc: Number of processes.
        check: Called before, once, in a process of its own; a UserError that it raises is raised here.
    """
    os.environ |= share_cores(nproc)
    load_libraries()
    from torch.distributed import TCPStore

    context = get_context("fork")
    _check_loopback()
    if check is not None and (code := _check_apart(check, context)):
        return code
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
        ranks: list[ForkProcess] = []
        try:
            with signals_blocked():
                for rank in range(nproc):
                    own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    ranks.append(
                        context.Process(target=_be_rank, args=(main, arguments, own, listener, os.getpid()))
                    )
                    ranks[-1].start()
                told = _pass_on_from_terminal(ranks)
                pass_on_signals()
            # Last, as it starts threads.
            store = TCPStore(
                host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
            )
            code = _wait(ranks, told)
        finally:
            for process in ranks:
                if process.pid and process.exitcode is None:
                    process.kill()
    del store
    return code


def _check_loopback() -> None:
    """Raise UserError if processes of this machine can't reach each other, for which they would wait in vain."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"127.0.0.1: {error.strerror or error}; bring the loopback interface up (ip link set lo up), or give "
            "--nproc 1"
        ) from error


def _check_apart(check: Callable[[], object], context: ForkContext) -> int:
    """Call `check` in a fork, which loses with it the threads that it starts, or CUDA; 0 if it found nothing."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_check_and_tell, args=(check, sender, os.getpid()))
    process.start()
    sender.close()
    mistake = None
    with suppress(EOFError):
        mistake = receiver.recv()
    process.join()
    if mistake is not None:
        raise mistake
    return _exit_code(process, "the check before the start")


def _check_and_tell(check: Callable[[], object], sender: Connection, parent: int) -> None:
    end_with_parent(signal.SIGKILL, parent)
    try:
        check()
    except UserError as error:
        sender.send(error)
    except Exception as error:
        sys.exit(tell(error))


def end_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Have this process sent a signal when the thread that started it is gone; now, if `parent`, a process, is."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if parent not in (None, os.getppid()):
        os.kill(os.getpid(), number)


def _be_rank(
    main: Callable[[], object],
    arguments: list[str],
    environment: dict[str, str],
    listener: socket.socket,
    launcher: int,
) -> None:
    listener.close()
    os.setsid()  # the terminal's signals go to the launcher, which passes them on
    for number in (*SIGNALS, signal.SIGHUP):
        if number in SIGNALS or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.SIG_DFL)
    end_with_parent(signal.SIGTERM, launcher)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, *FROM_TERMINAL})
    os.environ |= environment
    run_forked(main, arguments)


def _pass_on_from_terminal(ranks: list[ForkProcess]) -> list[int]:
    """Pass the terminal's signals on, but those that are ignored (nohup); the list that those seen go to."""
    told: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        for rank in ranks:
            with suppress(ProcessLookupError):
                if rank.pid and rank.exitcode is None:
                    os.kill(rank.pid, number)

    for number in FROM_TERMINAL:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    return told


def _wait(ranks: list[ForkProcess], told: list[int]) -> int:
    """Wait for the ranks, ending all once one has failed; the exit code that tells what happened."""

    def running() -> list[int]:
        return [number for number, rank in enumerate(ranks) if rank.exitcode is None]

    while not told and running() and not any(rank.exitcode for rank in ranks):
        time.sleep(0.1)
    first = next((rank for rank in ranks if rank.exitcode), None)
    if not told and first is not None:
        for number in running():
            ranks[number].terminate()
    deadline = time.monotonic() + _GRACE
    while running() and time.monotonic() < deadline:
        time.sleep(0.05)
    if left := running():
        print(
            f"cetnet: process {', '.join(map(str, left))} did not end within {_GRACE:.0f} s, and is killed",
            file=sys.stderr,
        )
        for number in left:
            ranks[number].kill()
            ranks[number].join()
    if told:
        return 128 + told[0]
    if said := [rank.exitcode for rank in ranks if rank.exitcode and rank.exitcode > 0]:
        return said[0]  # a process that was not killed has said why it ended, or who is gone
    return 0 if first is None else _exit_code(first, f"process {ranks.index(first)}")


def _exit_code(process: ForkProcess, name: str) -> int:
    """The exit code that tells how a process ended; says so if it was killed."""
    code = process.exitcode or 0
    if code >= 0:
        return code
    killed_by = signal.Signals(-code)
    guess = "; out of memory?" if killed_by == signal.SIGKILL else ""
    print(f"cetnet: {name} was killed by {killed_by.name}{guess}", file=sys.stderr)
    return 128 + killed_by
