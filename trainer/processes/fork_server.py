"""Processes that begin with the libraries loaded: forks of a server that does nothing but load them."""

import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from cetnet.trainer.processes.launcher import FROM_TERMINAL, share_cores, signals_blocked
from cetnet.trainer.processes.signals import SIGNALS

Argument = TypeVar("Argument")


def fork_server(nproc: int) -> ForkServerContext:
    """A context whose processes are forks of one server, which ends with this process and the last of them.

    Args:
        nproc: How many processes are to share the machine's cores; the first call's holds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["cetnet.trainer.processes.preload"])
    # As with `-P`, nothing is imported from the folder one stands in.
    with _environment({"PYTHONSAFEPATH": "1"} | share_cores(nproc)):
        resource_tracker.ensure_running()  # unblocks signals
        with signals_blocked():  # which the server will ignore, once it has come that far
            forkserver.ensure_running()
    return context


def start(function: Callable[[Argument], object], argument: Argument, nproc: int) -> BaseProcess:
    """Call a module's function in a fork that has our terminal, working directory, environment and signals.

    Raises SystemExit if a signal ends the wait for the server.
    """
    context = fork_server(nproc)
    wait_until_loaded(context)
    ignored = [n for n in (*SIGNALS, *FROM_TERMINAL) if signal.getsignal(n) is signal.SIG_IGN]
    process = context.Process(target=_call, args=(function, argument, dict(os.environ), ignored))
    with signals_blocked():
        process.start()
    return process


def ask(
    function: Callable[[tuple[Any, Connection]], object], argument: Any, nproc: int
) -> tuple[Any, int | None]:
    """What a module's function sends from a fork, None if nothing, and the fork's exit code.

    The function is called with the argument and the pipe to send by. Raises SystemExit as `start`.
    """
    receiver, sender = Pipe(duplex=False)
    child = start(function, (argument, sender), nproc)
    sender.close()
    answer = None
    try:
        with suppress(EOFError):
            answer = receiver.recv()
        child.join()
    finally:
        child.kill()  # if this was interrupted: there is nothing to save
    return answer, child.exitcode


def wait_until_loaded(context: ForkServerContext) -> None:
    """Wait for the server: one that still loads would fork only then, also for one who is gone by that time.

    Raises SystemExit if a signal ends the wait.
    """
    first = context.Process(target=default_signals)
    first.start()
    first.join()
    if first.exitcode:
        sys.exit(128 - first.exitcode if first.exitcode < 0 else first.exitcode)


def default_signals(ignored: Collection[signal.Signals] = ()) -> None:
    """Be ended by the signals that the server ignores, but for those that are to be ignored."""
    for number in {*SIGNALS, *FROM_TERMINAL} - set(ignored):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, *FROM_TERMINAL})


def _call(
    function: Callable[[Argument], object],
    argument: Argument,
    environment: dict[str, str],
    ignored: list[signal.Signals],
) -> None:
    default_signals(ignored)
    os.environ.clear()
    os.environ |= environment
    function(argument)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= changes
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
