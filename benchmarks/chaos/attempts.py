"""A training run under faults: its attempts, each a start of `cetnet train --resume`, and what they trained."""

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cetnet.trainer.checkpoint.store import CHECKPOINTS, Disk
from cetnet.trainer.processes.launcher import CETNET

RECORDER = Path(__file__).parent / "recorder"
PATIENCE = 600  # seconds for a step to be reached, or a command to end; beyond that it hangs


class ChaosError(Exception):
    """The trainer did not answer a fault as it should."""


@dataclass
class Attempt:
    """`cetnet train --resume` under way: the n-th start of a run, which goes on at step `first`."""

    number: int
    world_size: int
    first: int
    ledger: Path
    process: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> list[list[bytes]]:
        """What each rank wrote down of each step."""
        files = [self.ledger / f"rows-{self.number}-{rank}" for rank in range(self.world_size)]
        # What follows the last newline is a part of a line, or nothing.
        return [file.read_bytes().split(b"\n")[:-1] if file.exists() else [] for file in files]

    def step(self) -> int:
        """The step that every rank has reached."""
        return self.first + min(map(len, self.lines()))

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        process = psutil.Process(self.process.pid)
        return process.children() if self.world_size > 1 else [process]

    def kill(self) -> None:
        """End the launcher and all that it started, at once."""
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self.process.pid)
            for process in (launcher, *launcher.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()

    def wait(self) -> int:
        """Its exit code.

        Raises:
            ChaosError: it hangs.
        """
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise ChaosError(f"{self.log}: hangs") from None

    def expect_exit(self, code: int, said: str) -> None:
        """Wait for the end; raises ChaosError unless it has this code, and `said` is the only complaint."""
        actual, log = self.wait(), self.log.read_text(encoding="utf-8")
        complaints = [line for line in log.splitlines() if line.startswith("cetnet: ")]
        if actual != code:
            raise ChaosError(f"{self.log}: exit code {actual} instead of {code}")
        if said not in log or "Traceback" in log or len(complaints) > 1:
            raise ChaosError(f"{self.log}: instead of one line with {said!r}: {complaints or 'none'}")


@dataclass
class RestartedRun:
    """A training run of several attempts in `folder`, its run folder in `run_dir`.

    Attributes:
        lineage: attempts that the newest checkpoint descends from; of each, from which step to before which.
        trained: steps of all attempts, those included that were lost.
    """

    folder: Path
    run_dir: Path
    rng: random.Random
    disk: Path | None = None
    attempts: int = 0
    trained: int = 0
    lineage: list[tuple[Attempt, int, int]] = field(default_factory=list)

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint."""
        return next(reversed(Disk(self.run_dir / CHECKPOINTS).steps()), None)

    def start(self, world_size: int) -> Attempt:
        """Start the next attempt."""
        first = int(self.newest.name.removeprefix("step-")) if self.newest else 0
        ledger = self.folder / "ledger"
        ledger.mkdir(exist_ok=True)
        log = self.folder / f"attempt-{self.attempts}.txt"
        command = ["train", str(self.folder / "experiment.yaml"), f"run_dir={self.run_dir}", "--resume"]
        python_path = os.pathsep.join(filter(None, [str(RECORDER), os.environ.get("PYTHONPATH")]))
        recorder = {
            "PYTHONPATH": python_path,
            "LEDGER": str(ledger.absolute()),
            "ATTEMPT": str(self.attempts),
        }
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*CETNET, *command, "--nproc", str(world_size)],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | recorder,
                stdout=file,
                stderr=file,
            )
        self.attempts += 1
        return Attempt(self.attempts - 1, world_size, first, ledger, process, log)

    def ended(self, attempt: Attempt) -> None:
        """Take an attempt into the lineage, and cut off what it did not descend from."""
        before = [
            (a, first, min(end, attempt.first)) for a, first, end in self.lineage if first < attempt.first
        ]
        self.lineage = [*before, (attempt, attempt.first, attempt.step())]
        self.trained += attempt.step() - attempt.first

    def history(self) -> list[list[int]]:
        """The rows of each step that the final parameters descend from, sorted."""
        steps: list[list[int]] = []
        for attempt, first, end in self.lineage:
            for lines in zip(*(rank[: end - first] for rank in attempt.lines()), strict=True):
                steps.append(sorted(row for line in lines for row in json.loads(line) if row >= 0))
        return steps


def until(condition: Callable[[], bool], attempt: Attempt) -> None:
    """Wait; raises ChaosError if the attempt ends before, or hangs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if attempt.process.poll() is not None:
            raise ChaosError(f"{attempt.log}: ended with {attempt.process.returncode} before its fault")
        if time.monotonic() > end:
            raise ChaosError(f"{attempt.log}: hangs at step {attempt.step()}")
        time.sleep(0.02)
