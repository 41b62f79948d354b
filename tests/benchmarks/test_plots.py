"""Labels at the ends of lines."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from benchmarks.plots import Curve, _apart, draw_ne


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
