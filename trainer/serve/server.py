"""The server's life: listen, load, answer, swap, stop."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import torch
import uvicorn
import uvloop

from cetnet.trainer.console import console
from cetnet.trainer.errors import UserError
from cetnet.trainer.export.targets import Target
from cetnet.trainer.serve.batches import Batches
from cetnet.trainer.serve.endpoints import INTERCEPTORS, add_services, application
from cetnet.trainer.serve.metrics import Metrics
from cetnet.trainer.serve.plane import Plane
from cetnet.trainer.serve.tensors import Limits
from cetnet.trainer.serve.version import Versions

_GRACE = 30  # seconds for what is in flight when the server is told to stop


@dataclass(frozen=True)
class Settings:
    """How to serve: the options of `cetnet serve`."""

    folder: Path
    name: str
    target: Target | None
    threads: int
    batches: int
    max_batch_rows: int
    max_waiting_rows: int
    batch_wait: float
    limits: Limits = field(default_factory=Limits)


class _Http(uvicorn.Server):
    """Leaves signals to `serve`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def run(settings: Settings, http: socket.socket, grpc_address: str) -> None:
    """Be the server; arguments and errors as those of `serve`."""
    # Batches at once, a thread each; or one batch on all.
    torch.set_num_threads(settings.threads // settings.batches)
    # While another version is loaded, which is Python's work for seconds, requests get their turn sooner.
    sys.setswitchinterval(0.001)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, http, grpc_address))


async def serve(settings: Settings, http: socket.socket, grpc_address: str) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight; a second one ends the process at once.

    Args:
        settings: what and how.
        http: bound; uvicorn listens on it.
        grpc_address: HOST:PORT; port 0 for any that is free.

    Raises:
        UserError: no version can be loaded, or the address is taken.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _told_to_stop, stop, number)
    metrics = Metrics()
    versions = Versions(settings.folder, settings.target, metrics)
    batches = Batches(
        metrics,
        max_rows=settings.max_batch_rows,
        max_waiting=settings.max_waiting_rows,
        threads=settings.batches,
        wait=settings.batch_wait,
    )
    plane = Plane(settings.name, versions, batches, settings.limits, metrics)
    grpc_server, grpc_port = _grpc_server(plane, grpc_address)
    await grpc_server.start()
    http_server = _Http(
        uvicorn.Config(
            application(plane),
            log_level="critical",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE,
            timeout_keep_alive=65,  # longer than proxies keep idle connections
            limit_concurrency=1000,
        )
    )
    tasks = [
        asyncio.create_task(http_server.serve([http])),
        asyncio.create_task(batches.run()),
        asyncio.create_task(_load(versions, http, grpc_port)),
    ]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in tasks if task.done()]
    plane.draining = True
    if stop.is_set():
        console.print("stopping: finishing what is in flight")
    http_server.should_exit = True
    await asyncio.gather(grpc_server.stop(_GRACE), tasks[0], return_exceptions=True)
    for task in (stopping, *tasks[1:]):
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
    for task in failed:
        task.result()


def _told_to_stop(stop: asyncio.Event, number: int) -> None:
    """The second time it ends at once."""
    if stop.is_set():
        os._exit(128 + number)
    stop.set()


async def _load(versions: Versions, http: socket.socket, grpc_port: int) -> None:
    """Load the first version, say where it is served, and watch for newer ones."""
    await versions.look()
    if versions.current is None:
        raise UserError(versions.why_none)
    host, port = http.getsockname()[:2]
    console.print(f"ready: http://{host}:{port}/v2, gRPC on {host}:{grpc_port}, metrics at /metrics")
    await versions.watch()


def _grpc_server(plane: Plane, address: str) -> tuple[grpc.aio.Server, int]:
    size = plane.limits.bytes
    server = grpc.aio.server(
        interceptors=INTERCEPTORS,
        options=[
            ("grpc.max_receive_message_length", size),
            ("grpc.max_send_message_length", size),
            ("grpc.so_reuseport", 0),  # two servers on one port would share its calls
        ],
        maximum_concurrent_rpcs=200,
    )
    add_services(server, plane)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise UserError(f"gRPC cannot listen on {address}; choose another port with --grpc-port")
    return server, port
