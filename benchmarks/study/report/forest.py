"""The gains of a study's variants with their intervals, one below the other."""

import math
from collections.abc import Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cetnet.benchmarks.study.report.intervals import Gain
from cetnet.benchmarks.study.report.rows import PROGRESSIVE, Row, gain_of
from cetnet.trainer.plan.plot_style import COLORS

FARTHEST = 6
"""Times the median reach of the intervals where the plot ends: a model that is far off would flatten the others."""

KINDS = {"NE gain (%)": ("o", COLORS[0]), gain_of(PROGRESSIVE): ("D", COLORS[1])}


def draw_forest(rows: Sequence[Row], baseline: str, margin: float, title: str) -> Figure | None:
    """Gains of NE and progressive NE over the baseline; None if no row has an interval.

    Args:
        rows: Rows with gains; of a baseline against itself too.
        baseline: Its name.
        margin: Within plus or minus this a difference is of no matter: a band.
        title: Of the plot.
    """
    drawn = [row for row in rows if any(_known(row.gain(kind)) for kind in KINDS)]
    if not drawn:
        return None
    figure = Figure(figsize=(9, 0.5 * len(drawn) + 1.9), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-margin, margin, color="0.93", zorder=0)
    axes.axvline(0, color="0.4", linewidth=1)
    reach = [
        max(abs(gain.low), abs(gain.high))
        for row in drawn
        for kind in KINDS
        if (gain := row.gain(kind)) and _known(gain)
    ]
    limit = 1.1 * max(margin, min(max(reach), FARTHEST * median(reach)))
    axes.set_xlim(-limit, limit)
    for place, row in enumerate(drawn):
        for index, (kind, (marker, color)) in enumerate(KINDS.items()):
            if (gain := row.gain(kind)) and _known(gain):
                own = "0.45" if row.against_itself else color
                _draw(axes, place + 0.22 * (index - 0.5), gain, marker, own)
    axes.set_yticks(range(len(drawn)), [_label(row) for row in drawn])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    words = axes.secondary_yaxis("right")
    words.set_yticks(range(len(drawn)), [row.comparison.verdict if row.comparison else "" for row in drawn])
    words.tick_params(length=0)
    words.spines["right"].set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"gain over {baseline} (%), lower is better; grey: ±{margin:g} %", parse_math=False)
    axes.set_title(title, loc="left", parse_math=False)
    for kind, (marker, color) in KINDS.items():
        if any(_known(row.gain(kind)) for row in drawn):
            axes.plot([], [], marker=marker, color=color, linestyle="none", label=kind)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, place: float, gain: Gain, marker: str, color: str) -> None:
    low, high = axes.get_xlim()
    axes.hlines(place, max(gain.low, low), min(gain.high, high), color=color, linewidth=1.8)
    if low < gain.point < high:
        axes.plot(gain.point, place, marker=marker, color=color, markersize=6)
    for beyond, bound, arrow in ((gain.low < low, low, "<"), (gain.high > high, high, ">")):
        if beyond:
            axes.plot(bound, place, marker=arrow, color=color, markersize=7, clip_on=False)


def _label(row: Row) -> str:
    return f"  {row.component}" if row.component else row.variant


def _known(gain: Gain | None) -> bool:
    return gain is not None and math.isfinite(gain.low) and math.isfinite(gain.high)
