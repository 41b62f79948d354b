"""`cetnet serve`: what is checked before anything heavy is imported."""

import importlib.util
import ipaddress
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from cetnet.trainer.console import console
from cetnet.trainer.errors import UserError
from cetnet.trainer.export.targets import Target
from cetnet.trainer.failures import reason
from cetnet.trainer.serve.bare_kserve import import_without_client
from cetnet.trainer.serve.exports import check_served, exports_in, fastest_served


def serve(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="An export, or a folder of exports: the one whose name is the last is served."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of HTTP; 0: any that is free.")] = 8080,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Of gRPC; 0: any that is free.")] = 8081,
    name: Annotated[
        str, typer.Option(help="The model's name in addresses: /v2/models/NAME/infer.")
    ] = "cetnet",
    target: Annotated[
        Target | None, typer.Option(help="Model file to run.", show_default="the fastest there is")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of the model; with ONNX each scores a batch.", show_default="the cores"
        ),
    ] = None,
    max_batch_rows: Annotated[
        int, typer.Option(min=1, help="Rows of requests that are scored together.")
    ] = 512,
    batch_wait_ms: Annotated[
        float,
        typer.Option(min=0, max=1000, help="How long a request waits for others while the model is idle."),
    ] = 0.0,
    max_waiting_rows: Annotated[
        int, typer.Option(min=1, help="Rows that may wait; what comes beyond is refused (503, UNAVAILABLE).")
    ] = 8192,
    max_request_rows: Annotated[int, typer.Option(min=1, help="Rows of a request.")] = 4096,
    max_request_mib: Annotated[int, typer.Option(min=1, max=1024, help="MiB of a request.")] = 16,
) -> None:
    """Answer requests for scores of raw rows: Open Inference Protocol (KServe's v2), HTTP and gRPC.

    An export that takes the place of DIR, or comes into it under a later name, is loaded, tried on its own examples
    and then answers, without a request lost; one that can't be loaded is refused, and the old one goes on. SIGTERM:
    finish what is in flight and exit with code 0.

    Example: cetnet serve exports/clicks; then, with a tensor for each column of exports/clicks/request.json:
    curl -d '{"inputs": [{"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["17"]}, ...]}'
    localhost:8080/v2/models/cetnet/infer
    """
    check_served(folder)
    if not name or "/" in name or not name.isprintable():
        raise UserError(f"--name {name!r}: a name that can stand in an address is expected")
    if importlib.util.find_spec("kserve") is None:
        raise UserError("serving needs KServe's Python server: install 'cetnet[serve]'")
    threads = threads or len(os.sched_getaffinity(0))
    parallel = (target or fastest_served(exports_in(folder)[0].folder)) == "onnx"
    with _bound(host, port, "--port") as http:
        _bound(host, grpc_port, "--grpc-port").close()  # gRPC binds it itself, once torch is loaded
        if not _is_loopback(host):
            console.print(
                f"whoever reaches {host} can ask: there is no password; keep it behind a proxy that has one"
            )
        import_without_client()
        from cetnet.trainer.serve.server import Settings, run
        from cetnet.trainer.serve.tensors import Limits

        run(
            Settings(
                folder=folder,
                name=name,
                target=target,
                threads=threads,
                batches=threads if parallel else 1,
                max_batch_rows=max_batch_rows,
                max_waiting_rows=max_waiting_rows,
                batch_wait=batch_wait_ms / 1000,
                limits=Limits(rows=max_request_rows, bytes=max_request_mib << 20),
            ),
            http,
            f"{f'[{host}]' if ':' in host else host}:{grpc_port}",
        )


def _bound(host: str, port: int, option: str) -> socket.socket:
    """A socket on which to listen; raises UserError if there is none to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            # Only who listens holds a port; before uvicorn does, connections wait.
            bound.listen(2048)
        except OSError:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({reason(error)}); choose another --host or {option}"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
