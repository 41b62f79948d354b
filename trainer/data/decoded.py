"""Decoded rows: NumPy arrays, of whole columns or blocks of them, so that few large copies move many rows."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cetnet.models.schema import Schema
from cetnet.trainer.data.bad_rows import BadRow


class Lists(NamedTuple):
    """A list for each row: the ids of all of them, one after the other (any integer type), and offsets.

    Attributes:
        ids: `[offsets[n]]`.
        offsets: `[n + 1]` int64, from 0.
    """

    ids: NDArray
    offsets: NDArray[np.int64]

    def slice(self, start: int, stop: int) -> "Lists":
        """Rows `[start, stop)`."""
        offsets = self.offsets[start : stop + 1]
        return Lists(self.ids[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, order: NDArray[np.int64]) -> "Lists":
        """Rows by position. As binary strings: these Arrow copies whole, lists of numbers one number at a time."""
        size = self.ids.itemsize
        buffers = [None, pa.py_buffer(self.offsets * size), pa.py_buffer(self.ids)]
        strings = pa.Array.from_buffers(pa.large_binary(), len(self.offsets) - 1, buffers)
        _, offsets, ids = strings.take(pa.array(order)).buffers()
        ends = np.frombuffer(offsets, np.int64, len(order) + 1) // size
        return Lists(np.frombuffer(ids, self.ids.dtype, ends[-1]), ends)


class Rows(NamedTuple):
    """Decoded rows.

    Attributes:
        row: `[n]` int64 row numbers; -1 for bad rows, whose contents are replaced.
        numbers: `[2 + m, n]` float32: label, weight (0 for bad rows), dense features.
        ids: `[c, n]` of the categorical features: int32, or int64 where a table is too large for it.
        lists: of each multi-valued feature or sequence.
        bad: the bad rows, by position.
    """

    row: NDArray[np.int64]
    numbers: NDArray[np.float32]
    ids: NDArray
    lists: list[Lists]
    bad: dict[int, BadRow]

    def slice(self, start: int, stop: int) -> "Rows":
        """Rows `[start, stop)`: views."""
        return Rows(
            self.row[start:stop],
            self.numbers[:, start:stop],
            self.ids[:, start:stop],
            [lists.slice(start, stop) for lists in self.lists],
            {at - start: row for at, row in self.bad.items() if start <= at < stop},
        )

    def take(self, order: NDArray[np.int64]) -> "Rows":
        """Good rows by position."""
        assert not self.bad
        lists = [lists.take(order) for lists in self.lists]
        return Rows(self.row[order], self.numbers[:, order], self.ids[:, order], lists, {})


def zeros(schema: Schema, count: int) -> Rows:
    """Rows of zeros and empty lists, without a number or a weight."""
    return Rows(
        row=np.full(count, -1),
        numbers=np.zeros((2 + len(schema.dense_features), count), np.float32),
        ids=np.zeros((len(schema.of_kind("categorical")), count), np.int32),
        lists=[Lists(np.empty(0, np.int64), np.zeros(count + 1, np.int64))] * len(schema.list_features),
        bad={},
    )
