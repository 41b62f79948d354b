"""Cutting, joining and ordering decoded rows, against lists of rows in plain Python."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.bad_rows import BadRow
from trainer.rows import Lists, Rows, concatenate

Plain = list[tuple[Any, ...]]


@st.composite
def decoded(draw: st.DrawFn) -> Rows:
    """Rows with two categorical features, two of lists (one of bytes), three numbers; some are bad."""
    count = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))

    def lists(dtype: type) -> Lists:
        offsets = np.concatenate([[0], rng.integers(0, 4, count).cumsum()])
        return Lists(rng.integers(0, 100, offsets[-1]).astype(dtype), offsets)

    bad = np.flatnonzero(rng.random(count) < draw(st.sampled_from([0.0, 0.3, 1.0])))
    return Rows(
        row=rng.integers(0, 1 << 40, count),
        numbers=rng.random((3, count), np.float32),
        ids=rng.integers(0, 100, (2, count), np.int32),
        lists=[lists(np.int64), lists(np.uint8)],
        bad={at: BadRow(Path("part"), 0, int(rng.integers(1000)), "user", "null") for at in bad.tolist()},
    )


def plain(rows: Rows) -> Plain:
    lists = [np.split(ids, offsets[1:-1]) for ids, offsets in rows.lists]
    return [
        (
            *(rows.row[i], *rows.numbers[:, i], *rows.ids[:, i]),
            *(values[i].tolist() for values in lists),
            rows.bad.get(i),
        )
        for i in range(len(rows.row))
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(decoded(), min_size=1, max_size=4), st.data())
def test_rows_move_whole(parts: list[Rows], data: st.DataObject) -> None:
    expected: Plain = []
    slices = []
    for part in parts:
        start = data.draw(st.integers(0, len(part.row) - 1))
        stop = data.draw(st.integers(start + 1, len(part.row)))
        slices.append(part.slice(start, stop))
        expected += plain(part)[start:stop]
    assert plain(concatenate(slices)) == expected
    order = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=30))
    assert plain(concatenate(slices).take(np.array(order))) == [expected[i] for i in order]
