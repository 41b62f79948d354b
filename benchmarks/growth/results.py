"""What was measured, as JSON, as a table and as a figure of each axis."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from cetnet.benchmarks.growth.axes import Axis, Ratio, Timing
from cetnet.benchmarks.measured import spread
from cetnet.trainer.plan.plot_style import COLORS, LINES, MARKERS

_PANELS: Mapping[str, Callable[[Mapping[str, Any]], list[float]]] = {
    "ms a step": lambda point: [1e3 * seconds for seconds in point["seconds"]],
    "rows/s": lambda point: [point["batch_size"] / seconds for seconds in point["seconds"]],
    "peak memory, GB": lambda point: [point["peak_bytes"] / 1e9],
}


def result(axis: Axis, timings: Sequence[Timing | None]) -> dict[str, Any]:
    """What `growth.json` has of an axis; points without a timing, and ratios with one of them, are left out.

    Of each point: its place and settings, seconds a step of each round, steps in a round, bytes, seconds to build the
    model. Of each ratio: its value in each round, and its target.
    """
    points = [
        {
            "line": point.line,
            "x": point.x,
            "batch_size": point.batch_size,
            "precision": point.precision,
            "ranks": point.ranks,
            "table_bytes": point.table_bytes(),
            **vars(timing),
        }
        for point, timing in zip(axis.points, timings, strict=True)
        if timing
    ]
    ratios = [
        {"what": ratio.what, "at_most": ratio.at_most, "values": values}
        for ratio in axis.ratios
        if (values := _rounds(ratio, timings))
    ]
    return {"about": axis.about, "points": points, "ratios": ratios}


def _rounds(ratio: Ratio, timings: Sequence[Timing | None]) -> list[float]:
    """The ratio in each round; none if one of its points was not measured."""
    numerator, *denominators = (timings[i] for i in (ratio.point, *ratio.against))
    if numerator is None or None in denominators:
        return []
    of_rounds = zip(*(timing.seconds for timing in denominators if timing), strict=True)
    return [value / sum(others) for value, others in zip(numerator.seconds, of_rounds, strict=True)]


def markdown(axis: Axis, measured: Mapping[str, Any]) -> str:
    """The points of an axis, medians with the lowest and the highest, and its ratios."""
    headings = ["", *([] if axis.bars else [axis.label]), "ms a step", "rows/s", "steps timed"]
    headings += [] if axis.bars else ["peak memory", "to build"]
    lines = [f"| {' | '.join(headings)} |", "|:--|" + "--:|" * (len(headings) - 1)]
    for point in measured["points"]:
        seconds = point["seconds"]
        cells = [point["line"], *([] if axis.bars else [f"{point['x']:,.0f}"])]
        cells += [
            spread([1e3 * value for value in seconds], ".1f"),
            f"{point['batch_size'] / median(seconds):,.0f}",
            f"{point['steps'] * len(seconds)}",
        ]
        if not axis.bars:
            cells += [f"{point['peak_bytes'] / 1e9:.2f} GB", f"{point['build_seconds']:.1f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    parts = [measured["about"], "\n".join(lines)]
    parts += [
        "\n".join(
            f"- {ratio['what']}: **{spread(ratio['values'], '.2f')}**"
            + (f" (target: at most {ratio['at_most']:g})" if ratio["at_most"] else "")
            for ratio in measured["ratios"]
        )
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def draw(name: str, axis: Axis, measured: Mapping[str, Any]) -> Figure:
    """Bars, or a panel each of step time, rows/s and memory along x; whiskers from the lowest to the highest."""
    if axis.bars:
        return _draw_bars(name, measured)
    figure = Figure(figsize=(12, 4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    for panel, (ylabel, values_of) in zip(panels, _PANELS.items(), strict=True):
        lines = groupby(measured["points"], key=lambda point: point["line"])
        for index, (line, members) in enumerate(lines):
            points = list(members)
            _draw_line(panel, index, line, [p["x"] for p in points], [values_of(p) for p in points])
        _dress(panel, sorted({point["x"] for point in measured["points"]}))
        panel.set_xlabel(axis.label)
        panel.set_ylabel(ylabel)
    _draw_guide(panels[0], axis, measured)
    panels[0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"{name}: medians, whiskers from the lowest round to the highest", x=0.01, ha="left")
    return figure


def _draw_line(
    axes: Axes, index: int, label: str, x: Sequence[float], rounds: Sequence[Sequence[float]]
) -> None:
    middle = [median(values) for values in rounds]
    below = [m - min(values) for m, values in zip(middle, rounds, strict=True)]
    above = [max(values) - m for m, values in zip(middle, rounds, strict=True)]
    axes.errorbar(
        x,
        middle,
        [below, above],
        label=label,
        color=COLORS[index],
        linestyle=LINES[index],
        marker=MARKERS[index],
        markersize=5,
        linewidth=1.5,
        capsize=3,
    )


def _draw_guide(axes: Axes, axis: Axis, measured: Mapping[str, Any]) -> None:
    """Through the first point of each line if the cost should be flat; else through the last, where the fixed part of
    the cost hides nothing."""
    for index, (_, members) in enumerate(groupby(measured["points"], key=lambda point: point["line"])):
        points = list(members)
        x = [point["x"] for point in points]
        first, last = (1e3 * median(point["seconds"]) for point in (points[0], points[-1]))
        y = [last * value / x[-1] if axis.guide == "proportional" else first for value in x]
        axes.plot(x, y, color="0.5", linestyle=":", linewidth=1, label=None if index else axis.guide)


def _dress(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if math.log10(high / low) < 1:  # so that what is flat looks flat
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bars(name: str, measured: Mapping[str, Any]) -> Figure:
    points = measured["points"]
    figure = Figure(figsize=(8, 0.8 + 0.5 * len(points)), dpi=150, layout="constrained")
    axes = figure.subplots()
    rounds = [[1e3 * value for value in point["seconds"]] for point in points]
    middle = [median(values) for values in rounds]
    axes.barh(
        [point["line"] for point in points],
        middle,
        xerr=[
            [m - min(values) for m, values in zip(middle, rounds, strict=True)],
            [max(values) - m for m, values in zip(middle, rounds, strict=True)],
        ],
        color="0.8",
        edgecolor="black",
        capsize=3,
    )
    for place, value in enumerate(middle):
        axes.text(value / 50, place, f"{value:,.1f}", va="center")
    axes.invert_yaxis()
    axes.set_xlabel("ms a step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{name}: medians, whiskers from the lowest round to the highest", loc="left", fontsize=10)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write `path` as .svg and as .png."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"))
