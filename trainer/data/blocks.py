"""Blocks of large row groups, read one after the other, so that none is held whole."""

from collections.abc import Callable, Iterator
from threading import Lock

import pyarrow as pa
import pyarrow.parquet as pq

_NEAR = 2  # blocks that are kept until they are asked for, as decoding threads may ask in another order


class BlockReader:
    """The rows of one row group, block after block; for several threads, which ask for neighbours.

    A row group can be read from its beginning only: what is asked for goes on from there, or from the last block.

    Args:
        open_file: opens the file anew.
        index: of the row group.
        columns: that are read.
        block_rows: rows of a block, but of the last one.
    """

    def __init__(
        self, open_file: Callable[[], pq.ParquetFile], index: int, columns: list[str], block_rows: int
    ) -> None:
        self._open, self._index, self._columns, self._block_rows = open_file, index, columns, block_rows
        self._lock = Lock()
        self._kept: dict[int, pa.Table] = {}
        self._restart()

    def read(self, number: int) -> pa.Table:
        """A block by its number; raises what pyarrow does."""
        with self._lock:
            if number in self._kept:
                return self._kept.pop(number)
            if number < self._next:
                self._restart()
            while self._next < number:
                passed = self._next
                self._kept[passed] = self._take()
                while len(self._kept) > _NEAR:
                    del self._kept[min(self._kept)]
            return self._take()

    def _restart(self) -> None:
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._left: list[pa.RecordBatch] = []
        self._next = 0

    def _take(self) -> pa.Table:
        """The next block."""
        batches = self._batches or self._open().iter_batches(
            self._block_rows, [self._index], self._columns, use_threads=False
        )
        self._batches = batches
        taken, rows = [], 0
        while rows < self._block_rows:
            batch = self._left.pop() if self._left else next(batches, None)
            if batch is None:
                break
            if rows + batch.num_rows > self._block_rows:
                self._left.append(batch.slice(self._block_rows - rows))
                batch = batch.slice(0, self._block_rows - rows)
            taken.append(batch)
            rows += batch.num_rows
        self._next += 1
        return pa.Table.from_batches(taken)
