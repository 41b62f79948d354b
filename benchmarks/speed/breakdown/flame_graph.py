"""A flame graph of a step, all profiled steps in one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from cetnet.benchmarks.speed.breakdown.phases import OTHER, PHASES, backward_roots, phase_of, steps_of
from cetnet.trainer.plan.plot_style import COLORS

SMALLEST = 0.004  # of the whole: what is narrower isn't drawn


@dataclass
class Frame:
    """A box of the flame graph: microseconds of all its calls, and the boxes on top of it."""

    name: str
    phase: str
    microseconds: float = 0.0
    above: dict[str, "Frame"] = field(default_factory=dict)


def flame(events: Iterable[Any]) -> Frame:
    """Calls of the same name in the same place are one box."""
    root = Frame("step", OTHER)

    def add(event: Any, below: Frame) -> None:
        name = re.sub(r" \d+ ##$", " ##", event.name)
        box = below.above.setdefault(name, Frame(name, phase_of(event.name, below.phase)))
        box.microseconds += event.cpu_time_total
        for child in event.cpu_children:
            add(child, box)

    for step in steps_of(events):
        root.microseconds += step.cpu_time_total
        for child in step.cpu_children:
            add(child, root)
    if backward := root.above.get("## backward ##"):
        for event in backward_roots(events):
            add(event, backward)
    return root


def draw(root: Frame, title: str, num_steps: int) -> Figure:
    """A flame graph: a box's width is its share of the step, on top of it is what it called."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    axes = figure.add_subplot()
    colors = dict(zip([*PHASES, OTHER], [*COLORS[:-1], "#999933", "#F0E442", "#BBBBBB"], strict=True))
    deepest = 0

    def box(frame: Frame, left: float, depth: int) -> None:
        nonlocal deepest
        deepest = max(deepest, depth)
        width = frame.microseconds / root.microseconds
        axes.barh(
            depth,
            width,
            left=left,
            height=1,
            color=colors[frame.phase],
            edgecolor="white",
            linewidth=0.3,
            alpha=0.75,
        )
        letters = int(width * 190)
        if letters > 3:
            name = frame.name.strip("# ")
            axes.text(
                left + width / 2, depth, name[:letters], ha="center", va="center", fontsize=6, clip_on=True
            )
        for above in sorted(frame.above.values(), key=lambda other: -other.microseconds):
            if above.microseconds / root.microseconds >= SMALLEST:
                box(above, left, depth + 1)
                left += above.microseconds / root.microseconds

    box(root, 0.0, 0)
    axes.set(xlim=(0, 1), ylim=(-0.5, deepest + 0.5), yticks=[], xlabel="share of the step")
    axes.set_title(f"{title}, {root.microseconds / num_steps / 1000:.1f} ms under the profiler", fontsize=9)
    handles = [axes.barh(0, 0, color=color, alpha=0.75) for color in colors.values()]
    figure.legend(handles=handles, labels=list(colors), loc="outside lower center", ncols=5, fontsize=8)
    return figure
