"""Values that have ids already: a vocabulary, read by ranges of its values, and written with others behind them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cetnet.trainer.encoder.hashing import mix64
from cetnet.trainer.encoder.vocabulary import COLUMNS
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.arrow_files import BATCH_ROWS, RowWriter, batches, read_batch
from cetnet.trainer.prepare.engine.tasks import TaskSizes, read_facts, write_facts
from cetnet.trainer.prepare.engine.typed import ENTRY_BYTES, SAMPLES
from cetnet.trainer.prepare.engine.values import forms
from cetnet.trainer.prepare.engine.vocabulary_files import VocabularyWriter, values_digest

_KNOWN = pa.schema([("value", pa.large_string()), ("id", pa.int64())])
ADDED = pa.schema([("id", pa.int64()), ("count", pa.int64())])


def pieces(path: Path, sizes: TaskSizes) -> list[tuple[int, int]]:
    """Row groups [start, stop) of a vocabulary's file that a task can hold in memory."""
    metadata = pq.read_metadata(path)
    found: list[tuple[int, int]] = []
    room = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        cost = ENTRY_BYTES * group.num_rows + 4 * group.column(0).total_uncompressed_size
        if not found or cost > room:
            found.append((number, number))
            room = sizes.bucket_bytes
        found[-1] = (found[-1][0], number + 1)
        room -= cost
    return found


def sort_values(folder: Path, path: Path, start: int, stop: int, sizes: TaskSizes) -> None:
    """known.arrow: the values of some row groups of a vocabulary, and their ids, in the order of the values.

    facts.json: as `type_rows` says of a chunk's values, a digest, and the first value of each batch.
    """
    try:
        with pq.ParquetFile(path) as file:
            first = 1 + sum(file.metadata.row_group(i).num_rows for i in range(start))
            frame = pl.DataFrame(file.read_row_groups(range(start, stop)).cast(COLUMNS))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a vocabulary: {str(error).splitlines()[0]}") from error
    ids = frame["id"].to_numpy()
    if frame["value"].null_count() or (ids != first + np.arange(len(ids))).any():
        raise UserError(f"{path} is damaged: not every row has a value, and an id one above that before")
    digest = values_digest(frame["value"].to_arrow(), ids)
    frame = frame.select("value", "id").sort("value")
    with RowWriter(folder / "known.arrow", _KNOWN) as writer:
        writer.write(frame.to_arrow().cast(_KNOWN))
    values = frame["value"]
    every = max(1, sizes.bucket_bytes // (ENTRY_BYTES * SAMPLES))
    offset = int(mix64(np.array([start], np.uint64))[0]) % every
    facts = {
        "distinct": len(values),
        "bytes": int(values.str.len_bytes().sum()),
        "samples": values.gather_every(every, offset).to_list(),
        "forms": forms(values),
        "digest": digest,
        "firsts": values.gather_every(BATCH_ROWS).to_list(),
    }
    write_facts(folder, facts)


class Known(NamedTuple):
    """The values of a vocabulary that are in a range, [first, last).

    Attributes:
        pieces: folders of `sort_values`.
        first, last: None: there is no such end.
        grows: whether others get ids behind them.
    """

    pieces: Sequence[Path]
    first: str | None
    last: str | None
    grows: bool

    def read(self) -> pl.DataFrame:
        """Columns `value` and `id`."""
        frame = pl.DataFrame(pa.Table.from_batches(self._batches(), _KNOWN))
        above = pl.lit(True) if self.first is None else pl.col("value") >= self.first
        below = pl.lit(True) if self.last is None else pl.col("value") < self.last
        return frame.filter(above & below)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for piece in self.pieces:
            firsts = read_facts(piece)["firsts"]
            low = 0 if self.first is None else max(0, bisect_right(firsts, self.first) - 1)
            high = len(firsts) if self.last is None else bisect_left(firsts, self.last)
            for number in range(low, high):
                yield read_batch(piece / "known.arrow", number)


def grow_vocabulary(folder: Path, path: Path, numbered: Sequence[Path]) -> None:
    """vocabulary.parquet: a vocabulary's values, counted on, and those kept in all ranges behind them; facts.json.

    Memory: a batch of the vocabulary, and of each range.
    """
    added = [_Added(batches(of_range / "added.arrow")) for of_range in numbered]
    writer = VocabularyWriter(folder / "vocabulary.parquet")
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=COLUMNS.names):
            counts = batch["count"].to_numpy().copy()
            for of_range in added:
                of_range.add_to(counts, batch["id"][0].as_py())
            writer.write(batch["value"], counts)
    writer.write_kept(numbered)
    write_facts(folder, writer.close())


class _Added:
    """How often values occur beyond the count in their vocabulary; a range's, in the order of the ids."""

    def __init__(self, rest: Iterator[pa.RecordBatch]) -> None:
        self._rest = rest
        self._ids = self._counts = np.empty(0, np.int64)

    def add_to(self, counts: NDArray[np.int64], first: int) -> None:
        """Add those of the ids from `first` on, of which none before was asked for later."""
        stop = first + len(counts)
        while True:
            end = int(np.searchsorted(self._ids, stop))
            counts[self._ids[:end] - first] += self._counts[:end]
            self._ids, self._counts = self._ids[end:], self._counts[end:]
            if len(self._ids) or (batch := next(self._rest, None)) is None:
                return
            self._ids, self._counts = batch["id"].to_numpy(), batch["count"].to_numpy()
