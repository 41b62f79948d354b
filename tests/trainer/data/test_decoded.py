"""Lists of decoded rows, cut and put in order, against lists in plain Python."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.trainer.data.decoded import Lists


def plain(lists: Lists) -> list[list[int]]:
    return (
        [ids.tolist() for ids in np.split(lists.ids, lists.offsets[1:-1])] if len(lists.offsets) > 1 else []
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 255), max_size=4), min_size=1, max_size=12),
    st.sampled_from([np.int64, np.int32, np.uint8]),
    st.data(),
)
def test_lists_move_whole(expected: list[list[int]], dtype: type, data: st.DataObject) -> None:
    ids = np.array([one for values in expected for one in values], dtype)
    lists = Lists(ids, np.cumsum([0, *map(len, expected)]))
    assert plain(lists) == expected
    start = data.draw(st.integers(0, len(expected) - 1))
    stop = data.draw(st.integers(start + 1, len(expected)))
    lists, expected = lists.slice(start, stop), expected[start:stop]
    assert plain(lists) == expected
    order = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=30))
    taken = lists.take(np.array(order, np.int64))
    assert plain(taken) == [expected[i] for i in order]
    assert taken.ids.dtype == dtype
