"""How plots look: colours, lines and markers that tell apart without colour, and labels at the ends of lines."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart; line and marker do so in black and white.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1))]
MARKERS = "os^DvPX"
SIGNS = "●■▲◆▼✚✖"  # the markers, as text


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], inches: float) -> None:
    """Write each (x, y, text, colour) right of the plot, at its height or as near as texts don't overlap.

    A y outside of the plot is pointed to at its edge.
    """
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    heights = _apart([y for _, y, _, _ in ends], 0.25 / inches * (high - low), low, high)
    for (x, y, text, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            text,
            xy=(x, min(max(y, low), high)),
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
