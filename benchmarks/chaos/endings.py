"""Kill a command at 0, 0.1, 0.2 ... seconds until it ends by itself: how long it takes to end, and what it leaves.

    python -m cetnet.benchmarks.chaos.endings --files data --files train.yaml -- train train.yaml --nproc 2

Each time in a fresh folder, with copies of the files that it needs, and with SIGTERM, SIGINT and SIGHUP in turn, to
its first process only. Fails if that ends with another code than one that says so, prints a traceback, or if it or
one that it has started is still there after 5 seconds. That is every moment of one healthy command; `benchmarks/fuzz`
stops commands too, each of many harmed ones at one random moment (`stop_after`).
"""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from uuid import uuid4

import psutil
import typer

from cetnet.benchmarks.command import run_command
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.launcher import CETNET

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LIMIT = 5.0  # seconds
MARK = "CETNET_ENDINGS"


def endings(
    command: Annotated[list[str], typer.Argument(help="Arguments of `cetnet`.")],
    files: Annotated[list[Path], typer.Option(help="What it reads: copied to where it runs.")] = [],  # noqa: B006
    step: Annotated[float, typer.Option(min=0.01, help="Seconds between two moments.")] = 0.1,
) -> None:
    """Kill a command at every moment of its life; see what it takes and leaves."""
    slowest, codes, left, wrong, moment = 0.0, Counter[int](), Counter[str](), 0, 0
    ended = False
    while not ended:
        number = SIGNALS[moment % len(SIGNALS)]
        with TemporaryDirectory() as name:
            folder = Path(name)
            for path in files:
                (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
            ended, seconds, code = _kill(command, folder, moment * step, number)
            log = (folder / "log").read_text(encoding="utf-8", errors="replace")
            left.update(str(path.relative_to(folder)) for path in folder.rglob(".*"))
        slowest, moment = max(slowest, 0 if ended else seconds), moment + 1
        codes[code] += 1
        expected = {0} if ended else {-number, 128 + number, 0, os.EX_TEMPFAIL}
        if seconds > LIMIT or code not in expected or "Traceback" in log or "Exception ignored" in log:
            wrong += 1
            typer.echo(
                f"{(moment - 1) * step:.1f} s, {number.name}: code {code} after {seconds:.1f} s\n{log}"
            )
    hidden = ", ".join(f"{path} ({count} times)" for path, count in left.items()) or "none"
    typer.echo(
        f"{moment} moments, {slowest:.1f} s at most to end; exit codes {dict(codes)}; hidden files: {hidden}"
    )
    if wrong:
        raise UserError(f"{wrong} of {moment} endings were wrong, see above; mend what they have in common")


def _kill(command: list[str], folder: Path, after: float, number: signal.Signals) -> tuple[bool, float, int]:
    """Whether it ended before, the seconds until all its processes had, and its exit code."""
    mark = uuid4().hex
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*CETNET, *command],
            cwd=folder,
            env=os.environ | {MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    ended = False
    try:
        process.wait(after)
        ended = True
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    start = time.monotonic()
    while process.poll() is None or _marked(mark):
        if time.monotonic() - start > 2 * LIMIT:
            for left in _marked(mark):
                left.kill()
        time.sleep(0.02)
    return ended, time.monotonic() - start, process.returncode


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


if __name__ == "__main__":
    run_command(endings)
