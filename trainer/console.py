"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere."""

import logging
import math
import warnings
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cetnet.trainer.errors import printable


class PlainConsole(Console):
    """A console that shows every text as it is, since a path or a name may be in it.

    No text is markup, holds codes of emoji or is coloured by what it looks like; styles are given as arguments.
    What is text alone is wrapped by the terminal, if at all.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Text that isn't looked into."""
        return super().render_str(
            printable(text), **options | {"markup": False, "emoji": False, "highlight": False}
        )

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts, each on as many lines as it has, or tables."""
        if all(isinstance(each, str) for each in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)


# Progress goes to stderr, results to stdout; where that is a file, tables keep their full width.
console, output = PlainConsole(stderr=True), PlainConsole()
for _console in (console, output):
    if not _console.is_terminal:
        _console.width = 120


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """Progress of a run on rank 0; silent elsewhere.

    Args:
        total: steps in the whole run.
        done: steps already made.
        enabled: whether this process speaks.
    """

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self._enabled, self._total = enabled, total
        self._bar: Progress | None = None
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[status]}", markup=False),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("train", total=total, completed=done, status="starting")
            self._bar.start()

    def step(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, values: dict[str, Any]) -> None:
        """Say how it goes: rows/s, NE, share of the time spent waiting for data, time left."""
        status = (
            f"{values['rows_per_second']:,.0f} rows/s | NE {shown(values['ne/window/fused'], 4)} window "
            f"{shown(values['ne/lifetime/fused'], 4)} lifetime | data wait {values['data_wait']:.0%}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
        elif self._enabled:
            left = (self._total - step) * values["seconds_per_step"]
            console.print(f"step {step}/{self._total} | {status} | {left:.0f} s left")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            console.print(message)

    def warn(self, message: str) -> None:
        """Print a line that stands out."""
        if self._enabled:
            console.print(message, style="bold red")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


def progress_bar() -> Progress:
    """A progress bar on stderr; nothing at all where stderr is not a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def shown(value: float, decimals: int = 5) -> str:
    """A number as it is printed; - if it is undefined."""
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def quieten() -> None:
    """Silence what the libraries say at import and in every step, and a user can do nothing about."""
    for module in ["torch", "torchrec", "fbgemm_gpu", "torchmetrics", "tensordict", "tensorboard", "torchx"]:
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")
    warnings.filterwarnings("ignore", message="Please use DTensor instead")
    for logger in ("torchrec", "torch.fx", "torch.distributed.checkpoint"):
        logging.getLogger(logger).setLevel(logging.ERROR)
