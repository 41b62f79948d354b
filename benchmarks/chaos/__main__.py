"""Chaos: one training under random faults, and the same training undisturbed, which it must end like.

    python -m cetnet.benchmarks.chaos --out runs/chaos
    python -m cetnet.benchmarks.chaos --out runs/chaos-elastic --elastic

A ledger (`recorder/`) has the rows of every step of every attempt on every rank. A fault strikes once it
shows that a step is reached which is drawn at random; the next attempt resumes. At the end hold

- exactly once: the steps that the final parameters descend from trained every row of the split once, and the
  same rows at each step as the undisturbed run;
- the same model: on as many processes all along, parameters and optimizer states are equal bit for bit; with
  --elastic, where each attempt has 1, 2 or 4 processes, NE is equal to 1e-6, progressive and on test.
"""

import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import torch
import torch.distributed.checkpoint as dcp
import typer
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cetnet.trainer.checkpoint.safe_load import SafeReader
from cetnet.trainer.checkpoint.store import CHECKPOINTS, Disk
from cetnet.trainer.console import console, output, quieten
from cetnet.trainer.prepare.sources.synthetic import prepare_synthetic
from cetnet.trainer.processes.launcher import CETNET
from cetnet.trainer.run_folder import RESULT

RECORDER = Path(__file__).parent / "recorder"
BATCH_SIZE, CHECKPOINT_EVERY = 64, 6
STEPS_PER_FAULT = 12  # on average between a resumption and the next fault
STEPS_AFTER = 25  # no fault in the last steps: it must strike before the run has ended
TRAIN_SHARE = 0.8  # of the rows that are drawn
WORLD_SIZES = (1, 2, 4)
NE_TOLERANCE = 1e-6
PATIENCE = 600  # seconds for a step to be reached, or a command to end; beyond that it hangs


class ChaosError(Exception):
    """The trainer did not answer a fault as it should."""


class Verdict(NamedTuple):
    """What must hold, whether it does, and what was found."""

    what: str
    holds: bool
    found: str


def settings(data: Path, checkpoint_every: int | None) -> dict[str, Any]:
    """The experiment: a small ensemble."""
    small = {"embedding_dim": 8, "num_layers": 1, "hidden_units": [16], "dot_hidden_units": [8]}
    return {
        "data": {"path": str(data), "batch_size": BATCH_SIZE, "lanes": max(WORLD_SIZES), "shuffle_rows": 500},
        "model": {
            "components": {
                "interformer": {"kind": "interformer", "num_heads": 2, **small},
                "dhen": {"kind": "dhen", **small},
            },
            "collaboration": {"weight": 0.1},
        },
        "training": {"log_every": 2, "device": "cpu"},
        "evaluation": {"splits": ["test"]},
        "checkpoint": {"every_steps": checkpoint_every, "keep": 3},
    }


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
        actual, log = self.wait(), self.log.read_text()
        complaints = [line for line in log.splitlines() if line.startswith("cetnet: ")]
        if actual != code:
            raise ChaosError(f"{self.log}: exit code {actual} instead of {code}")
        if said not in log or "Traceback" in log or len(complaints) > 1:
            raise ChaosError(f"{self.log}: instead of one line with {said!r}: {complaints or 'none'}")


@dataclass
class Chaos:
    """A training run of several attempts in `folder`, its run in `run`.

    Attributes:
        lineage: attempts that the newest checkpoint descends from; of each, from which step to before which.
        trained: steps of all attempts, those included that were lost.
    """

    folder: Path
    run: Path
    rng: random.Random
    disk: Path | None = None
    attempts: int = 0
    trained: int = 0
    lineage: list[tuple[Attempt, int, int]] = field(default_factory=list)

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint."""
        return next(reversed(Disk(self.run / CHECKPOINTS).steps()), None)

    def start(self, world_size: int) -> Attempt:
        """Start the next attempt."""
        first = int(self.newest.name.removeprefix("step-")) if self.newest else 0
        ledger = self.folder / "ledger"
        ledger.mkdir(exist_ok=True)
        log = self.folder / f"attempt-{self.attempts}.txt"
        command = ["train", str(self.folder / "experiment.yaml"), f"run_dir={self.run}", "--resume"]
        recorder = {
            "PYTHONPATH": str(RECORDER),
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


class Outcome(NamedTuple):
    """The run under faults, the steps of a run, and how it compares with the undisturbed one."""

    chaos: Chaos
    total: int
    verdicts: list[Verdict]


def kill_a_rank(chaos: Chaos, attempt: Attempt) -> None:
    """SIGKILL to one of the ranks."""
    chaos.rng.choice(attempt.ranks()).kill()
    if attempt.wait() in (0, 2, os.EX_TEMPFAIL):
        raise ChaosError(
            f"{attempt.log}: a rank was killed, and the exit code was {attempt.process.returncode}"
        )


def kill_the_job(_chaos: Chaos, attempt: Attempt) -> None:
    """SIGKILL to launcher and ranks."""
    attempt.kill()


def terminate(_chaos: Chaos, attempt: Attempt) -> None:
    """SIGTERM to the launcher: exit code 75, and the step is saved."""
    attempt.process.terminate()
    attempt.expect_exit(os.EX_TEMPFAIL, "stopped by SIGTERM at step")


def truncate_the_newest(chaos: Chaos, attempt: Attempt) -> None:
    """The job is killed, and a file of the newest checkpoint cut: one line, and on with the one before."""
    until(lambda: chaos.newest is not None, attempt)
    attempt.kill()
    checkpoint = chaos.newest
    assert checkpoint is not None
    file = chaos.rng.choice(sorted(checkpoint.iterdir()))
    os.truncate(file, chaos.rng.randrange(file.stat().st_size))
    refused = chaos.start(attempt.world_size)
    try:
        refused.expect_exit(2, f"cetnet: {checkpoint}: damaged ({file.name} ")
    finally:
        refused.kill()
    shutil.move(checkpoint, chaos.folder / f"damaged-{attempt.number}-{checkpoint.name}")


def fill_the_disk(chaos: Chaos, attempt: Attempt) -> None:
    """Nothing more can be written: one line; then there is room again."""
    if chaos.disk is None:  # nearly the same: no file may be as large as a checkpoint's
        for rank in attempt.ranks():
            resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        attempt.expect_exit(2, "; make room or mend the disk, and go on with --resume")
        return
    filler = chaos.disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    attempt.expect_exit(2, "; make room or mend the disk, and go on with --resume")
    filler.unlink()


FAULTS: dict[str, Callable[[Chaos, Attempt], None]] = {
    "kill -9 of a rank": kill_a_rank,
    "SIGTERM": terminate,
    "full disk": fill_the_disk,
    "truncated checkpoint": truncate_the_newest,
    "kill -9 of the job": kill_the_job,
}


@contextmanager
def small_disk(mount: Path, size: int) -> Iterator[Path | None]:
    """A tmpfs of `size` bytes, in a mount namespace that ends with this program; None where that is refused."""
    mount.mkdir(parents=True)
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && echo mounted && exec cat'
    if not (unshare := shutil.which("unshare")):
        yield None
        return
    command, pipe = [unshare, "-Urm", "sh", "-c", script, str(mount)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as holder:
        assert holder.stdout is not None
        mounted = holder.stdout.readline() == b"mounted\n"
        yield Path(f"/proc/{holder.pid}/root{mount.absolute()}") if mounted else None


def until(condition: Callable[[], bool], attempt: Attempt) -> None:
    """Wait; raises ChaosError if the attempt ends before, or hangs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if attempt.process.poll() is not None:
            raise ChaosError(f"{attempt.log}: ended with {attempt.process.returncode} before its fault")
        if time.monotonic() > end:
            raise ChaosError(f"{attempt.log}: hangs at step {attempt.step()}")
        time.sleep(0.02)


def train_through(chaos: Chaos, faults: list[str], elastic: bool, total: int, nproc: int) -> None:
    """Train `total` steps, each attempt but the last ended by the next of the faults."""
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=total)
        for number, fault in enumerate([*faults, None]):
            before = chaos.lineage[-1][0].world_size if chaos.lineage else None
            world_size = (
                chaos.rng.choice([size for size in WORLD_SIZES if size != before]) if elastic else nproc
            )
            attempt = chaos.start(world_size)
            room = total - STEPS_AFTER - attempt.first
            strike_at = attempt.first + chaos.rng.randint(1, max(1, 2 * room // (len(faults) - number + 1)))
            progress.update(
                task, description=f"fault {number + 1} of {len(faults)}" if fault else "to the end"
            )

            def reached(attempt: Attempt = attempt, strike_at: int = strike_at) -> bool:
                progress.update(task, completed=attempt.step())
                return attempt.step() >= strike_at

            try:
                if fault is None:
                    while attempt.process.poll() is None:
                        reached()
                        time.sleep(0.1)
                    attempt.expect_exit(0, "")
                else:
                    until(reached, attempt)
                    FAULTS[fault](chaos, attempt)
            finally:
                attempt.kill()
            chaos.ended(attempt)
            progress.console.print(
                f"attempt {attempt.number} on {world_size}: from step {attempt.first}, "
                f"{fault or 'finished'} at step {attempt.step()}",
                highlight=False,
            )


def judge(chaos: Chaos, calm: Chaos, elastic: bool, num_rows: int) -> Iterator[Verdict]:
    """Compare the two runs, which are finished."""
    ours, theirs = chaos.history(), calm.history()
    counts = Counter(row for step in ours for row in step)
    wrong = sum(counts[row] != 1 for row in counts.keys() | set(range(num_rows)))
    yield Verdict("every row exactly once", not wrong, f"{wrong} of {num_rows:,} rows wrong")
    unequal = sum(a != b for a, b in itertools.zip_longest(ours, theirs))
    yield Verdict("the same rows at each step", not unequal, f"{unequal} of {len(theirs)} steps differ")
    one, other = (json.loads((run / RESULT).read_text()) for run in (chaos.run, calm.run))
    apart = [abs(one["train"][name] - value) for name, value in other["train"].items()]
    test = other["splits"]["test"].items()
    apart += [abs(one["splits"]["test"][name] - value) for name, value in test if name.startswith("ne/")]
    near = max(apart) <= NE_TOLERANCE
    yield Verdict("the same NE, progressive and on test", near, f"at most {max(apart):.1e} apart")
    if not elastic:
        assert chaos.newest is not None
        assert calm.newest is not None
        tensors = tensors_of(calm.newest)
        different = differing(tensors_of(chaos.newest), tensors)
        found = f"{len(different)} of {len(tensors)} tensors differ"
        yield Verdict("the same parameters and optimizer states, bit for bit", not different, found)


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole."""
    reader = SafeReader(checkpoint)
    tensors = {
        key: torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for key, tensor in reader.read_metadata().state_dict_metadata.items()
        if isinstance(tensor, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that differ in a bit, or that only one side has."""

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()

    both = one.keys() & other.keys()
    return sorted((one.keys() ^ other.keys()) | {key for key in both if not same(one[key], other[key])})


def run_chaos(out: Path, faults: list[str], seed: int, nproc: int, elastic: bool) -> Outcome:
    """Train undisturbed and under the faults, in this order, in a new folder.

    Raises:
        ChaosError: a fault was not answered as it should be.
    """
    total = STEPS_AFTER + STEPS_PER_FAULT * (len(faults) + 1)
    rows = total * BATCH_SIZE - BATCH_SIZE // 3  # the last batch is padded
    prepare_synthetic(out / "data", round(rows / TRAIN_SHARE), seed)
    rows = json.loads((out / "data/card.json").read_text())["splits"]["train"]["rows"]
    calm, chaos = (Chaos(out / name, out / name / "run", random.Random(seed)) for name in ("calm", "chaos"))
    for run, checkpoint_every in ((calm, None), (chaos, CHECKPOINT_EVERY)):
        run.folder.mkdir()
        experiment = settings(out / "data", checkpoint_every)
        (run.folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    train_through(calm, [], False, total, nproc)
    assert calm.newest is not None
    checkpoint = sum(file.stat().st_size for file in calm.newest.iterdir())
    with small_disk(out / "disk", 8 * checkpoint + 2**24) as chaos.disk:
        if chaos.disk:
            chaos.run = chaos.disk / "run"
        train_through(chaos, faults, elastic, total, nproc)
        return Outcome(chaos, total, list(judge(chaos, calm, elastic, rows)))


def main(
    out: Annotated[Path, typer.Option(help="New folder for data, runs, ledgers and logs.")],
    faults: Annotated[int, typer.Option(min=1, help="How many, of all kinds.")] = 25,
    seed: Annotated[int, typer.Option(help="Of the faults' order, places and times.")] = 1,
    elastic: Annotated[
        bool, typer.Option("--elastic", help="Each attempt on another number of processes: 1, 2 or 4.")
    ] = False,
    nproc: Annotated[int, typer.Option(min=1, max=4, help="Processes, without --elastic.")] = 2,
) -> None:
    """Train once undisturbed and once under random faults; exit with 1 unless both end the same.

    Faults: kill -9 of a rank or of the whole job, SIGTERM, a truncated newest
    checkpoint, a full disk. The folder keeps what each attempt said
    (chaos/attempt-<n>.txt). A start takes 10 to 20 seconds, nearly all of it
    imports.
    """
    if out.exists():
        raise typer.BadParameter(f"{out} exists; name a new folder", param_hint="--out")
    quieten()
    start, kinds = time.monotonic(), list(itertools.islice(itertools.cycle(FAULTS), faults))
    random.Random(seed).shuffle(kinds)
    try:
        chaos, total, verdicts = run_chaos(out, kinds, seed, nproc, elastic)
    except ChaosError as error:
        output.print(f"FAILS: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    table = Table("fault", "times", title=f"{total} steps of {BATCH_SIZE} rows, seed {seed}")
    for fault in FAULTS:
        table.add_row(fault, str(kinds.count(fault)))
    output.print(table)
    disk = (
        "a small tmpfs, filled"
        if chaos.disk
        else "a limit on the size of files, as no tmpfs could be mounted"
    )
    output.print(
        f"full disk: {disk}\n{chaos.attempts} starts, {chaos.trained - total} steps trained again, "
        f"{time.monotonic() - start:.0f} s",
        highlight=False,
    )
    for what, holds, found in verdicts:
        output.print(f"{'holds' if holds else 'FAILS'}: {what} ({found})", highlight=False)
    if not all(verdict.holds for verdict in verdicts):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
