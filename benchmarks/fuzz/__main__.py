"""Fuzzing: thousands of `cetnet` commands on bad files, disks and environments.

    python -m cetnet.benchmarks.fuzz --commands 10000 --seed 1 --jobs 2

Each ends as it should, or in a failure: a traceback, a hang, a signal, an exit code without a meaning, half-written
files, rows lost in silence, a refusal that is not one line or names nothing. One seed is one case: `--only SEED`.
"""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.fuzz.report import Report
from cetnet.benchmarks.fuzz.sandbox import enter
from cetnet.trainer.console import console, output
from cetnet.trainer.errors import UserError


def main(
    commands: Annotated[int, typer.Option(min=1, help="How many.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, help="The first case is this one's; each next has the next.")
    ] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="At a time.")] = 1,
    only: Annotated[
        int | None, typer.Option(help="The seed of one case: shown in full, its folder is kept.")
    ] = None,
    kind: Annotated[str, typer.Option(help="Only cases whose row in the table has this in its name.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for cases.jsonl, and the files of --only.")] = Path(
        "runs/fuzz"
    ),
) -> None:
    """Run commands on harmed files and surroundings; exit with 1 if one of them fails."""
    folder = enter(out)
    sandboxed = folder is not None
    if folder is None:
        console.print("no namespaces here: some of the surroundings are left out")
        folder = Path(tempfile.mkdtemp(prefix="cetnet-fuzz-"))
    from cetnet.benchmarks.fuzz.cases import SCENARIOS, kind_of
    from cetnet.benchmarks.fuzz.workers import run_cases

    if not any(kind in name for name in SCENARIOS):
        raise UserError(f"--kind {kind}: none of {', '.join(SCENARIOS)}")
    start = time.monotonic()
    drawn = (number for number in itertools.count(seed) if kind in kind_of(number))
    seeds = [only] if only is not None else list(itertools.islice(drawn, commands))
    report = Report(out)
    for result in run_cases(seeds, jobs, folder, out if only is not None else None, sandboxed):
        report.add(result)
    if only is not None:
        report.show_last()
    report.show(output)
    output.print(f"{report.count} commands, {report.failed} failed, {time.monotonic() - start:.0f} s")
    if report.failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(main)
