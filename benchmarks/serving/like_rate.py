"""How fast `cetnet prepare --like` is beside `cetnet prepare` of the same file.

    python -m cetnet.benchmarks.serving.like_rate --rows 1000000

Clicks in Criteo's format (13 numbers, 26 fields; `cetnet generate criteo`), prepared in turns: with the schema, then
like the result of that. Both are commands of their own, start-up included, on all cores.
"""

import tempfile
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.measured import machine, spread
from cetnet.benchmarks.speed.prepare_rate import measure
from cetnet.trainer.console import output
from cetnet.trainer.processes.launcher import CETNET


def like_rate(rows: int = 1_000_000, rounds: int = 3) -> dict[str, Any]:
    """Rows a second of both (a list each, one of each round), and the median of the rounds' ratios."""
    found: dict[str, list[float]] = {"prepare": [], "prepare --like": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        measure([*CETNET, "generate", "criteo", "--rows", str(rows), "--out", str(place / "raw")])
        schema = files("cetnet") / "configs/raw/criteo.yaml"
        raw = [*CETNET, "prepare", "csv", "--raw", str(place / "raw/train.txt"), "--overwrite"]
        first = str(place / "first")
        commands = {
            "prepare": [*raw, "--schema", str(schema), "--out", first],
            "prepare --like": [*raw, "--like", first, "--out", str(place / "next")],
        }
        for _ in range(rounds):
            for name, command in commands.items():
                found[name].append(rows / measure(command)[0])
    ratio = median(like / new for new, like in zip(*found.values(), strict=True))
    return {**found, "ratio": ratio}


def main(
    rows: Annotated[int, typer.Option(help="Rows of the file.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 3,
) -> None:
    """Measure both in turns, and print rows/s and their ratio."""
    found = like_rate(rows, rounds)
    output.print(machine())
    for name in ("prepare", "prepare --like"):
        output.print(f"{name}: {spread(found[name], ',.0f')} rows/s")
    output.print(f"prepare --like / prepare: {found['ratio']:.2f}")


if __name__ == "__main__":
    run_command(main)
