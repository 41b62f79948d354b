"""What it costs to use a trained model, in one run: the demo's CETNet, trained, exported and served.

    python -m cetnet.benchmarks.serving
    python -m cetnet.benchmarks.serving --only rates --rounds 9

rates: rows/s of the exported model, in each of its forms, beside the trainer's evaluation (`rates.py`). int8: what
small tables cost. server: latency under load, swaps, malformed requests, memory (`load.py`). like: `cetnet prepare
--like` beside `cetnet prepare` (`like_rate.py`).
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.measured import machine
from cetnet.benchmarks.serving.like_rate import like_rate
from cetnet.benchmarks.serving.results import markdown
from cetnet.trainer.console import console, output
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import write_json, write_text
from cetnet.trainer.processes.launcher import CETNET

PARTS = ("rates", "int8", "server", "like")
_DATA = Path("data/serving/demo")


def main(
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Only this: {', '.join(PARTS)}; repeat it.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contestant.")] = 5,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Length of a turn, and of a level of load / 3.")
    ] = 1.5,
    out: Annotated[
        Path, typer.Option(help="Folder for the run, its exports, results.json and table.md.")
    ] = Path("runs/serving"),
) -> None:
    """Measure exported models, the model server and `cetnet prepare --like`, and judge the figures.

    The demo's clicks go to data/serving/, and a model is trained on them for
    an epoch, unless both are there. Six minutes on 2 cores, two more the first
    time; the machine should do nothing else.

    Example: python -m cetnet.benchmarks.serving --only rates --only int8
    """
    if unknown := sorted(set(only or ()) - set(PARTS)):
        raise typer.BadParameter(
            f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}", param_hint="--only"
        )
    run, float32, int8 = out / "run", out / "exports/float32", out / "exports/int8"
    rates = [str(run), str(_DATA), str(float32), "--rounds", str(rounds), "--seconds", str(seconds)]
    parts: dict[str, Callable[[], Any]] = {
        "rates": lambda: _json_of("cetnet.benchmarks.serving.rates", rates, out / "rates.json"),
        "int8": lambda: _export(run, int8, "--int8"),
        "server": lambda: _serve(float32, out / "server", 3 * seconds),
        "like": lambda: like_rate(rows=500_000, rounds=min(rounds, 3)),
    }
    chosen = [part for part in PARTS if part in (only or PARTS)]
    if set(chosen) != {"like"}:
        _train(run)
    if {"rates", "server"} & set(chosen):
        _export(run, float32, "--target", "aoti,onnx")
    started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    results: dict[str, Any] = {"machine": machine(), "started": started, "failed": {}}
    for part in chosen:
        console.print(f"{part} ...")
        try:
            results[part] = parts[part]()
        except Exception as error:  # the others are told all the same
            results["failed"][part] = f"{type(error).__name__}: {error}".replace("\n", " ")
        write_json(out / "results.json", results)
        write_text(out / "table.md", markdown(results) + "\n")
    output.print((out / "table.md").read_text(encoding="utf-8"))
    raise typer.Exit(int(bool(results["failed"])))


def _train(run: Path) -> None:
    if not (_DATA / "schema.yaml").exists():
        _cetnet("prepare", "synthetic", "--out", str(_DATA), "--rows", "400000")
    if not (run / "result.json").exists():
        demo = str(files("cetnet") / "configs/demo.yaml")
        _cetnet("train", demo, f"data.path={_DATA}", f"run_dir={run}", "--resume")


def _export(run: Path, out: Path, *options: str) -> dict[str, Any]:
    """What the export's about.json says."""
    _cetnet("export", str(run), "--out", str(out), "--overwrite", *options)
    about: dict[str, Any] = json.loads((out / "about.json").read_text(encoding="utf-8"))
    return about


def _cetnet(*arguments: str) -> None:
    _run([*CETNET, *arguments])


def _json_of(module: str, arguments: Sequence[str], out: Path) -> Any:
    """What a measurement in a process of its own writes."""
    _run([sys.executable, "-P", "-m", module, *arguments, "--out", str(out)])
    return json.loads(out.read_text(encoding="utf-8"))


def _run(command: Sequence[str]) -> None:
    if subprocess.run(command).returncode:
        raise UserError(f"{shlex.join(command)} failed, and says above why")


def _serve(export: Path, out: Path, seconds: float) -> dict[str, Any]:
    from cetnet.benchmarks.serving.load import measure  # of an extra, [serve]

    return measure(export, out, seconds)


if __name__ == "__main__":
    run_command(main)
