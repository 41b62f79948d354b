"""How fast training on CPUs is, side by side with what people use and with the machine's limits.

    python -m cetnet.benchmarks.speed
    python -m cetnet.benchmarks.speed --only peers-22m --rounds 3

Ours is `cetnet train` as a user runs it: Parquet reader, metrics, logs, TensorBoard, checkpoints. The others have
their data ready in memory and do nothing but train. What is compared with what: `comparisons.py`.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.speed import reader_rate
from cetnet.benchmarks.speed.alternate import ContenderError, measure
from cetnet.benchmarks.speed.comparisons import ENVIRONMENT, FUXICTR, MODULE, Comparison, comparisons
from cetnet.benchmarks.speed.data import dataset
from cetnet.benchmarks.speed.peers.environment import peers_python
from cetnet.benchmarks.speed.results import describe_machine, write_results
from cetnet.trainer.console import console

READER, ROOFLINE = "reader", "roofline"


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this: roofline, reader, peers-2m, peers-22m, fuxictr-22m, plain-22m, din, ensemble, ranks, "
            "rows or evaluation; repeat it.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Windows of each contender.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a window.")] = 6.0,
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.md and logs.")] = Path(
        "runs/throughput"
    ),
) -> None:
    """Measure training speed against other trainers and the machine's limits.

    Contenders of a comparison take turns: each is warmed up, then stopped;
    a window of one, a window of the next, several rounds. Ratios are of
    windows of one round; given are the median and the extremes.

    FuxiCTR is installed into an environment of its own, .peers/, on the first
    run; data go to data/throughput/. 24 GB of memory; 20 minutes on 2 cores.
    The machine should do nothing else.

    Example: python -m cetnet.benchmarks.speed --only din --rounds 3 --seconds 5
    """
    work, logs = out / ".runs", out / "logs"
    every = comparisons(work)
    names = [ROOFLINE, READER, *(comparison.name for comparison in every)]
    if unknown := sorted(set(only or ()) - set(names)):
        raise typer.BadParameter(
            f"unknown: {', '.join(unknown)}; there are {', '.join(names)}", param_hint="--only"
        )
    chosen = only or names
    shutil.rmtree(work, ignore_errors=True)  # of a benchmark that was killed
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "rounds": rounds,
        "seconds": seconds,
        "comparisons": {},
    }
    if ROOFLINE in chosen:
        console.print("roofline")
        results["roofline"] = roofline()
        write_results(out, results, every)
    if READER in chosen:
        results["reader"] = reader_rate.measure("criteo", Path("data/reader_rate"), rounds)
        write_results(out, results, every)
    failed = False
    for comparison in every:
        if comparison.name in chosen:
            console.print(f"{comparison.name}: {comparison.about}")
            try:
                result = run(comparison, rounds, seconds, logs / comparison.name)
            except ContenderError as error:
                console.print(f"  {error}")
                result, failed = {"rates": {}, "missing": {comparison.name: str(error)}}, True
            finally:
                shutil.rmtree(work, ignore_errors=True)
            results["comparisons"][comparison.name] = result
            write_results(out, results, every)
    print((out / "table.md").read_text(encoding="utf-8"))
    raise typer.Exit(int(failed))


def run(comparison: Comparison, rounds: int, seconds: float, logs: Path) -> dict[str, Any]:
    """Rates of each contender by round, and why those that are missing are.

    Raises:
        ContenderError: one failed.
    """
    for name in comparison.data:
        dataset(name)
    contenders, missing = comparison.contenders, {}
    if any(c.name.startswith(FUXICTR) for c in contenders) and peers_python() is None:
        contenders = tuple(c for c in contenders if not c.name.startswith(FUXICTR))
        missing = {FUXICTR: "could not be installed"}
    rates = measure(contenders, rounds, seconds, logs, lambda text: console.print(f"  {text}"))
    return {"rates": rates, "missing": missing}


def roofline() -> dict[str, float]:
    """The machine's limits, measured by a process with the contenders' environment."""
    done = subprocess.run(
        [*MODULE, "cetnet.benchmarks.speed.roofline", "report"],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    run_command(main)
