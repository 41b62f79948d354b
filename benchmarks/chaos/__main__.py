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
import random
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cetnet.benchmarks.chaos.attempts import Attempt, ChaosError, RestartedRun, until
from cetnet.benchmarks.chaos.faults import FAULTS, small_disk
from cetnet.benchmarks.chaos.judge import Verdict, judge
from cetnet.benchmarks.command import run_command
from cetnet.trainer.console import console, output
from cetnet.trainer.prepare.sources.synthetic import prepare_synthetic

BATCH_SIZE, CHECKPOINT_EVERY = 64, 6
STEPS_PER_FAULT = 12  # on average between a resumption and the next fault
STEPS_AFTER = 25  # no fault in the last steps: it must strike before the run has ended
TRAIN_SHARE = 0.8  # of the rows that are drawn
WORLD_SIZES = (1, 2, 4)


class Outcome(NamedTuple):
    """The run under faults, the steps of a run, and how it compares with the undisturbed one."""

    disturbed: RestartedRun
    total: int
    verdicts: list[Verdict]


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


def train_through(run: RestartedRun, faults: list[str], elastic: bool, total: int, nproc: int) -> None:
    """Train `total` steps, each attempt but the last ended by the next of the faults."""
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=total)
        for number, fault in enumerate([*faults, None]):
            before = run.lineage[-1][0].world_size if run.lineage else None
            world_size = (
                run.rng.choice([size for size in WORLD_SIZES if size != before]) if elastic else nproc
            )
            attempt = run.start(world_size)
            left = total - STEPS_AFTER - attempt.first
            strike_at = attempt.first + run.rng.randint(1, max(1, 2 * left // (len(faults) - number + 1)))
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
                    FAULTS[fault](run, attempt)
            finally:
                attempt.kill()
            run.ended(attempt)
            progress.console.print(
                f"attempt {attempt.number} on {world_size}: from step {attempt.first}, "
                f"{fault or 'finished'} at step {attempt.step()}",
            )


def run_chaos(out: Path, faults: list[str], seed: int, nproc: int, elastic: bool) -> Outcome:
    """Train undisturbed and under the faults, in this order, in a new folder.

    Raises:
        ChaosError: a fault was not answered as it should be.
    """
    total = STEPS_AFTER + STEPS_PER_FAULT * (len(faults) + 1)
    rows = total * BATCH_SIZE - BATCH_SIZE // 3  # the last batch is padded
    prepare_synthetic(out / "data", round(rows / TRAIN_SHARE), seed)
    rows = json.loads((out / "data/card.json").read_text(encoding="utf-8"))["splits"]["train"]["rows"]
    calm, disturbed = (
        RestartedRun(out / name, out / name / "run", random.Random(seed)) for name in ("calm", "chaos")
    )
    for run, checkpoint_every in ((calm, None), (disturbed, CHECKPOINT_EVERY)):
        run.folder.mkdir()
        experiment = settings(out / "data", checkpoint_every)
        (run.folder / "experiment.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    train_through(calm, [], False, total, nproc)
    assert calm.newest is not None
    checkpoint = sum(file.stat().st_size for file in calm.newest.iterdir())
    with small_disk(out / "disk", 8 * checkpoint + 2**24) as disturbed.disk:
        if disturbed.disk:
            disturbed.run_dir = disturbed.disk / "run"
        train_through(disturbed, faults, elastic, total, nproc)
        return Outcome(disturbed, total, list(judge(disturbed, calm, elastic, rows)))


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

    Example: python -m cetnet.benchmarks.chaos --out runs/chaos --faults 5
    """
    if out.exists():
        raise typer.BadParameter(f"{out} exists; name a new folder", param_hint="--out")
    start, kinds = time.monotonic(), list(itertools.islice(itertools.cycle(FAULTS), faults))
    random.Random(seed).shuffle(kinds)
    try:
        disturbed, total, verdicts = run_chaos(out, kinds, seed, nproc, elastic)
    except ChaosError as error:
        output.print(f"FAILS: {error}")
        raise typer.Exit(1) from None
    table = Table("fault", "times", title=f"{total} steps of {BATCH_SIZE} rows, seed {seed}")
    for fault in FAULTS:
        table.add_row(fault, str(kinds.count(fault)))
    output.print(table)
    disk = (
        "a small tmpfs, filled"
        if disturbed.disk
        else "a limit on the size of files, as no tmpfs could be mounted"
    )
    output.print(
        f"full disk: {disk}\n{disturbed.attempts} starts, {disturbed.trained - total} steps trained again, "
        f"{time.monotonic() - start:.0f} s",
    )
    for what, holds, found in verdicts:
        output.print(f"{'holds' if holds else 'FAILS'}: {what} ({found})")
    if not all(verdict.holds for verdict in verdicts):
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(main)
