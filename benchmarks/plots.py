"""The plots of a study: NE and its gain along training."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from trainer.errors import UserError

# Okabe and Ito's colours, which the colour-blind can tell apart; line and marker do so in black and white.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1))]
MARKERS = "os^DvPX"
SIGNS = "●■▲◆▼✚✖"  # the markers, as text

WARM_UP = 0.1
"""First share of the examples that left out of a plot's range: NE falls steeply there, and hides the rest."""

MOST_POINTS = 500
"""Most points of a curve that are drawn, so that a page with plots stays small."""


class Curve(NamedTuple):
    """A figure along training: number of examples `[T]`, values `[seeds, T]`, and which seeds these are."""

    seeds: tuple[int, ...]
    rows: NDArray[np.float64]
    values: NDArray[np.float64]


def read_curve(folders: Mapping[int, Path], key: str) -> Curve:
    """`key` of metrics.jsonl where every seed has it, as one curve; empty if nowhere. `folders` are by seed."""
    seeds = [_read_series(folder / "metrics.jsonl", key) for folder in folders.values()]
    rows = sorted(set.intersection(*(set(series) for series in seeds)))
    values = np.array([[series[n] for n in rows] for series in seeds], dtype=np.float64)
    return Curve(tuple(folders), np.array(rows, dtype=np.float64), values)


def _read_series(path: Path, key: str) -> dict[int, float]:
    """Number of examples -> value, from the training records; of a step done twice (resumed), the last."""
    series = {}
    try:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            value = record.get(key)
            if record["kind"] == "train" and value is not None and math.isfinite(value):
                series[record["rows"]] = value
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); repeat the run") from None
    return series


def draw_ne(curves: Mapping[str, Curve], references: Mapping[str, float], title: str) -> Figure:
    """Windowed NE of each variant, every batch scored before it is learned from; `references` are levels."""
    return _draw(
        curves,
        title=f"{title}: progressive NE",
        ylabel="NE over the last window (lower is better)",
        label="{name}  {value:.4f}".format,
        references=references,
    )


def draw_gain(curves: Mapping[str, Curve], baseline: str, title: str) -> Figure:
    """NE gain of each variant's lifetime NE over the baseline's with the same seed."""
    base = curves[baseline]
    gains = {}
    for variant, curve in curves.items():
        # Variants whose batches differ log at other points: compare where both are known.
        known = (curve.rows >= base.rows.min(initial=np.inf)) & (curve.rows <= base.rows.max(initial=0))
        rows = curve.rows[known]
        before = dict(zip(base.seeds, base.values, strict=True)) if len(rows) else {}
        paired = {
            seed: 100 * (values[known] / np.interp(rows, base.rows, before[seed]) - 1)
            for seed, values in zip(curve.seeds, curve.values, strict=True)
            if seed in before
        }
        gains[variant] = Curve(tuple(paired), rows, np.array(list(paired.values())))
    return _draw(
        gains,
        title=f"{title}: NE gain over {baseline}",
        ylabel="NE gain since the start (%, negative is better)",
        label="{name}  {value:+.3f} %".format,
        references={},
    )


def _draw(
    curves: Mapping[str, Curve],
    *,
    title: str,
    ylabel: str,
    label: Callable[..., str],
    references: Mapping[str, float],
) -> Figure:
    """Lines with bands, labelled at their ends; `references` are horizontal lines."""
    figure = Figure(figsize=(9, max(5, 0.3 * len(curves))), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    ends = []
    shown: list[float] = list(references.values())
    for index, (name, curve) in enumerate(curves.items()):
        # 49 pairs of colour and line before one comes again.
        shifted = (index + index // 7) % 7
        color, line, marker = COLORS[index % 7], LINES[shifted], MARKERS[shifted]
        if not curve.values.size:
            continue
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
        settled = rows >= WARM_UP * rows[-1]
        shown += [lowest[settled].min(), highest[settled].max()]
        text = f"{SIGNS[shifted]} {label(name=name, value=mean[-1])}"
        ends.append((rows[-1], mean[-1], text, color))
    for name, value in references.items():
        axes.axhline(value, color="0.35", linestyle=(0, (6, 4)), linewidth=1)
        ends.append((axes.get_xlim()[1], value, label(name=name, value=value), "0.35"))
    axes.set_title(title, loc="left", parse_math=False)
    several = any(len(curve.values) > 1 for curve in curves.values())
    axes.set_xlabel("training examples" + " (line: mean of the seeds, band: lowest to highest)" * several)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        margin = 0.06 * (max(shown) - min(shown)) or 0.01
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    label_ends(axes, ends, figure.get_figheight())
    return figure


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], inches: float) -> None:
    """Write each (x, y, text, colour) right of the plot, at its height or as near as texts don't overlap."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    heights = _apart([y for _, y, _, _ in ends], 0.25 / inches * (high - low), low, high)
    for (x, y, text, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.02, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "alpha": 0.6,
                "relpos": (0, 0.5),
            },
        )


def _apart(heights: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """The heights nearest to the ascending `heights` that are at least `gap` apart: their isotonic regression,
    by its max-min formula, after taking away the gaps."""
    gaps = gap * np.arange(len(heights))
    free = np.asarray(heights) - gaps
    nearest = [
        max(min(free[a : b + 1].mean() for b in range(i, len(free))) for a in range(i + 1))
        for i in range(len(free))
    ]
    return np.clip(nearest, low, max(low, high - gap * (len(free) - 1))) + gaps
