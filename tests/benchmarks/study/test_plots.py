"""Labels at the ends of lines."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Annotation
from sklearn.isotonic import isotonic_regression

from cetnet.benchmarks.study.report.curves import Curve
from cetnet.benchmarks.study.report.plots import draw_ne
from cetnet.trainer.plan.plot_style import _apart


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12).map(sorted), st.floats(0.01, 1))
def test_labels_are_apart_and_as_near_as_can_be(heights: list[float], gap: float) -> None:
    low, high = -1.0, 11.0  # room for all of them
    placed = _apart(heights, gap, low, high)
    assert (np.diff(placed) >= gap - 1e-9).all()
    gaps = gap * np.arange(len(heights))
    nearest = isotonic_regression(heights - gaps, y_min=low, y_max=high - gaps[-1])
    np.testing.assert_allclose(placed, nearest + gaps, atol=1e-9)


def test_dollars_in_a_title_are_no_formula() -> None:
    curve = Curve((1,), np.array([10.0, 20.0]), np.array([[0.9, 0.8]]))
    figure = draw_ne({"a": curve}, {"$\\x{": 0.85}, "Cost $5_{ and $10")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    assert figure.axes[0].get_title(loc="left") == "Cost $5_{ and $10: progressive NE"


def test_every_variant_is_in_its_panels_and_divergence_does_not_flatten_the_others() -> None:
    rows = np.linspace(1, 100, 50)
    curves = {
        name: Curve((1,), rows, np.full((1, 50), level))
        for name, level in (("a", 0.8), ("b", 0.9), ("c", 7.0))
    }
    figure = draw_ne(curves, {}, "t", {"first": ["a", "b"], "second": ["a", "c"]})
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    drawn = {title: [line.get_ydata()[0] for line in axes.lines] for title, axes in panels.items()}  # type: ignore[index]
    assert drawn == {"first": [0.8, 0.9], "second": [0.8, 7.0]}
    for axes in panels.values():
        low, high = axes.get_ylim()
        assert low < 0.8
        assert 0.9 < high < 3
        # What is above the plot is pointed to at its edge.
        assert all(low <= text.xy[1] <= high for text in axes.texts if isinstance(text, Annotation))


def test_a_reference_below_does_not_push_the_curves_out() -> None:
    rows = np.linspace(1, 100, 50)
    curves = {name: Curve((1,), rows, np.full((1, 50), level)) for name, level in (("a", 1.2), ("b", 3.0))}
    low, high = draw_ne(curves, {"Bayes": 0.3}, "t").axes[0].get_ylim()
    assert low < 0.3
    assert high > 3
