"""How the cost of a training step grows, and what an ensemble costs beside its components alone.

    python -m cetnet.benchmarks.growth
    python -m cetnet.benchmarks.growth --only rows --only ensemble

What is timed and what isn't is said in `benchmarks/growth/steps.py`, what is measured in `axes.py`. Points take turns
in rounds; every figure is a median over the rounds with the lowest and the highest beside it, and a ratio is taken
within each round.
"""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.markdown import Markdown

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.growth.axes import AXES, Axis, Point, Timing
from cetnet.benchmarks.growth.results import draw, markdown, result, save
from cetnet.benchmarks.measured import machine, spread
from cetnet.trainer.console import console, output
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import write_json, write_text

_MEMORY_USED = 0.8
"""Share of the free memory that points may take together; the largest are left out if they need more."""

_PROCESS_BYTES = 1 << 29
"""What a process takes without its tables, at least."""


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(AXES)}; repeat it. Default: all of them.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each point is timed.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path, typer.Option(help="Folder for growth.json, growth.md and a figure of each axis.")
    ] = Path("runs/growth"),
) -> None:
    """Measure how the time of a training step grows: with table rows, dimension, batch, ...

    Each point of an axis is a model in a process of its own (a process a
    rank), fed with random batches that were made before: no reader, no
    metrics, no checkpoints. A point gets at least a step and 0.4 seconds a round.

    The whole takes about 5 minutes on 2 cores and 8 GB. Axes that
    OUT/growth.json has from before stay there, so each can be measured alone.

    Example: python -m cetnet.benchmarks.growth --only rows
    """
    for name in only or []:
        if name not in AXES:
            raise UserError(f"--only {name}: none of {', '.join(AXES)}")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: none of auto, cpu, cuda")
    results = _read(out / "growth.json")
    out.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(only or AXES):
        axis, start = AXES[name](), time.perf_counter()
        console.print(f"{name}: {len(axis.points)} points")
        measured = result(axis, _measure(axis, rounds, device))
        results[name] = {
            **measured,
            "machine": machine(),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
        }
        save(draw(name, axis, measured), out / name)
        _write(out, results)
        console.print(f"{name}: done in {time.perf_counter() - start:.0f} s")
        output.print(Markdown(markdown(axis, measured)))
    output.print(f"{out}: growth.json, growth.md, and a figure of each axis, .svg and .png")


def _measure(axis: Axis, rounds: int, device: str) -> list[Timing | None]:
    """Timings of the points, None for those that don't fit in memory together with the others of their line."""
    from cetnet.benchmarks.growth.steps import measure  # imports TorchRec, for which --help need not wait

    timings: list[Timing | None] = []
    for line, members in groupby(axis.points, key=lambda point: "" if axis.bars else point.line):
        points = list(members)
        fits = _fitting(points)
        start = time.perf_counter()
        measured = iter(
            measure([p for p, fit in zip(points, fits, strict=True) if fit], rounds, device, axis.bars)
        )
        for point, fit in zip(points, fits, strict=True):
            name = point.line if axis.bars else f"{line}, {point.x:,.0f} {axis.label}"
            timing = next(measured) if fit else None
            timings.append(timing)
            said = "left out: too little memory is free"
            if timing:
                said = f"{spread([1e3 * seconds for seconds in timing.seconds], '.1f')} ms a step"
            console.print(f"  {name}: {said}")
        console.print(f"  in {time.perf_counter() - start:.0f} s")
    return timings


def _fitting(points: Sequence[Point]) -> list[bool]:
    """Which points fit in memory together, the smallest first."""
    left = _MEMORY_USED * psutil.virtual_memory().available
    fits = [False] * len(points)
    for index in sorted(range(len(points)), key=lambda i: points[i].table_bytes()):
        left -= points[index].table_bytes() + _PROCESS_BYTES * points[index].ranks
        fits[index] = left >= 0
    return fits


def _read(path: Path) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it, or choose another --out") from None
    return results


def _write(out: Path, results: dict[str, Any]) -> None:
    """After each axis, so that a run that is stopped has not been for nothing."""
    write_json(out / "growth.json", results)
    sections = [
        f"## {name}\n\n{markdown(AXES[name](), measured)}\n![{name}]({name}.png)\n\n({measured['machine']}; "
        f"{measured['date']}; `python -m cetnet.benchmarks.growth --only {name}`)\n"
        for name, measured in results.items()
        if name in AXES
    ]
    write_text(out / "growth.md", "\n".join(sections))


if __name__ == "__main__":
    run_command(main)
