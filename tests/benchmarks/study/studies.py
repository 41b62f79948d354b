"""Studies of the fake trainer."""

import io
import json
from collections.abc import Callable
from pathlib import Path

from cetnet.benchmarks.study.run import run_study
from cetnet.trainer.console import PlainConsole
from tests.benchmarks.study import fake_trainer

PNG = b"\x89PNG\r\n\x1a\n"

Make = Callable[..., Path]
"""Writes `study.yaml` and what it needs, changed by keywords, into the working directory."""


def run(path: Path) -> str:
    """Run with the fake trainer; returns what a terminal of 100 columns shows."""
    shown = io.StringIO()
    run_study(path, train=fake_trainer.train, console=PlainConsole(file=shown, width=100))
    return shown.getvalue()


def calls() -> list[list[str]]:
    """Arguments of the fake trainer's calls since the last time it was asked."""
    log = Path("calls.txt")
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]
