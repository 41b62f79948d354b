"""The plots of a study: NE and its gain along training."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from cetnet.benchmarks.study.report.curves import Curve
from cetnet.trainer.plan.plot_style import COLORS, LINES, MARKERS, SIGNS, label_ends

WARM_UP = 0.1
"""First share of the examples, left out of a plot's range: NE falls steeply there, and hides the rest."""

MOST_NE = 3
"""Times the lowest NE at which a plot ends: a model that diverged would flatten the others."""

MOST_POINTS = 500
"""Most points of a curve that are drawn, so that a page with plots stays small."""

Panels = Mapping[str, Sequence[str]]
"""The variants in each panel of a plot with many of them, by the panel's title."""


def draw_ne(
    curves: Mapping[str, Curve], references: Mapping[str, float], title: str, panels: Panels | None = None
) -> Figure:
    """Windowed NE of each variant, every batch scored before it is learned from; `references` are levels."""
    return _draw(
        curves,
        panels,
        title=f"{title}: progressive NE",
        ylabel="NE over the last window",
        label="{name}  {value:.4f}".format,
        references=references,
        ceiling=MOST_NE
        * min((curve.values.min() for curve in curves.values() if curve.values.size), default=1),
    )


def draw_gain(gains: Mapping[str, Curve], baseline: str, title: str, panels: Panels | None = None) -> Figure:
    """NE gain of each variant's lifetime NE over the baseline's."""
    return _draw(
        gains,
        panels,
        title=f"{title}: NE gain over {baseline}",
        ylabel="NE gain since the start (%)",
        label="{name}  {value:+.3f} %".format,
        references={},
    )


def _draw(
    curves: Mapping[str, Curve],
    panels: Panels | None,
    *,
    title: str,
    ylabel: str,
    label: Callable[..., str],
    references: Mapping[str, float],
    ceiling: float = math.inf,
) -> Figure:
    """Lines with bands, labelled at their ends, in one panel or several; `references` are horizontal lines."""
    known = {name: curve for name, curve in curves.items() if curve.values.size}
    groups = {"": list(known)}
    if panels:
        groups = {group: [name for name in names if name in known] for group, names in panels.items()}
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    height = max(5 if columns == 1 else 3.6, 0.3 * max(map(len, groups.values())))
    figure = Figure(figsize=(9 if columns == 1 else 12, height * lines + 0.4), dpi=150, layout="constrained")
    axes_of = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
    shown = list(references.values())
    for curve in known.values():
        settled = curve.values.mean(axis=0)[curve.rows >= WARM_UP * curve.rows[-1]]
        shown += [settled.min(), settled.max()]
    low, high = min(shown, default=0), min(max(shown, default=1), ceiling)
    margin = 0.06 * (high - low) or 0.01
    several = any(len(curve.values) > 1 for curve in known.values())
    for index, (axes, (group, names)) in enumerate(zip(axes_of, groups.items(), strict=False)):
        axes.set_ylim(low - margin, high + margin)
        axes.set_title(group, loc="left", parse_math=False)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=index + columns >= len(groups))
        _draw_panel(axes, {name: known[name] for name in names}, label, references, height)
    for axes in axes_of[len(groups) :]:
        axes.set_visible(False)
    if panels:
        figure.suptitle(title, x=0.01, ha="left", parse_math=False)
    else:
        figure.axes[0].set_title(title, loc="left", parse_math=False)
    figure.supxlabel(
        "training examples" + " (line: mean of the seeds, band: lowest to highest)" * several, fontsize=10
    )
    figure.supylabel(f"{ylabel}, lower is better", fontsize=10)
    return figure


def _draw_panel(
    axes: Axes,
    curves: Mapping[str, Curve],
    label: Callable[..., str],
    references: Mapping[str, float],
    inches: float,
) -> None:
    ends = []
    for index, (name, curve) in enumerate(curves.items()):
        # 49 pairs of colour and line before one comes again.
        shifted = (index + index // 7) % 7
        color, line, marker = COLORS[index % 7], LINES[shifted], MARKERS[shifted]
        drawn = np.unique(np.linspace(0, len(curve.rows) - 1, MOST_POINTS).round().astype(int))
        rows, values = curve.rows[drawn], curve.values[:, drawn]
        mean, lowest, highest = (reduce(values, axis=0) for reduce in (np.mean, np.min, np.max))
        axes.plot(
            rows,
            mean,
            color=color,
            linestyle=line,
            marker=marker,
            # Each line has its markers elsewhere, so that lines on top of each other can be seen.
            markevery=(0.1 * index / len(curves), 0.1),
            markersize=5,
            linewidth=1.6,
        )
        axes.fill_between(rows, lowest, highest, color=color, alpha=0.18, linewidth=0)
        ends.append((rows[-1], mean[-1], f"{SIGNS[shifted]} {label(name=name, value=mean[-1])}", color))
    for name, value in references.items():
        axes.axhline(value, color="0.35", linestyle=(0, (6, 4)), linewidth=1)
        ends.append((axes.get_xlim()[1], value, label(name=name, value=value), "0.35"))
    label_ends(axes, ends, inches)
