"""A model server in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

_READY = re.compile(rb"ready: http://([\d.]+):(\d+)/v2, gRPC on [\d.]+:(\d+)")


@dataclass
class Running:
    """A server that is ready.

    Attributes:
        process: which it is.
        log: what it says.
        host, port, grpc_port: where it answers.
        name: of the model.
        seconds: from its start until it was ready.
    """

    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    host: str
    port: int
    grpc_port: int
    seconds: float
    name: str = "cetnet"

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        connection = HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of a metric's values over its labels."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def said(self) -> str:
        """What it has said so far."""
        self.log.seek(0)
        return self.log.read().decode()

    def end(self) -> int:
        """Tell it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def started(folder: Path, *options: str, seconds: float = 300) -> Iterator[Running]:
    """`cetnet serve FOLDER OPTIONS` on free ports unless options name them; killed at the end if it still runs.

    Raises:
        RuntimeError: it ended, or wasn't ready in time; with what it said.
    """
    with TemporaryFile() as log:
        begin = time.monotonic()
        ports = [] if "--port" in options else ["--port", "0", "--grpc-port", "0"]
        command = [sys.executable, "-m", "cetnet", "serve", str(folder), *ports, *options]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"COLUMNS": "200"})
        try:
            while not (ready := _READY.search(_content(log))):
                if process.poll() is not None or time.monotonic() > begin + seconds:
                    raise RuntimeError(f"the server isn't ready: {_content(log).decode()}")
                time.sleep(0.02)
            host, port, grpc_port = ready[1].decode(), int(ready[2]), int(ready[3])
            yield Running(process, log, host, port, grpc_port, time.monotonic() - begin)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _content(log: IO[bytes]) -> bytes:
    return os.pread(log.fileno(), 1 << 20, 0)
