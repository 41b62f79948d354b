"""Processes that begin with the libraries loaded: forks of a server that does nothing but load them."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

from cetnet.trainer.processes.launcher import share_cores


def fork_server(nproc: int) -> ForkServerContext:
    """A context whose processes are forks of one server, which ends with this process and the last of them.

    Args:
        nproc: How many processes are to share the machine's cores; the first call's holds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["cetnet.trainer.processes.preload"])
    # As with `-P`, nothing is imported from the folder one stands in.
    with _environment({"PYTHONSAFEPATH": "1"} | share_cores(nproc)):
        forkserver.ensure_running()
    return context


def start(function: Callable[[list[str]], object], arguments: list[str], nproc: int) -> BaseProcess:
    """Call a module's function in a fork that has our terminal, working directory and environment."""
    process = fork_server(nproc).Process(target=_call, args=(function, arguments, dict(os.environ)))
    process.start()
    return process


def _call(function: Callable[[list[str]], object], arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ |= environment
    function(arguments)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= changes
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
