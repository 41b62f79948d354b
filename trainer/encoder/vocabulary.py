"""A table's vocabulary: which value has which id."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .hashing import hash_text

COLUMNS = pa.schema([("value", pa.large_string()), ("id", pa.int64()), ("count", pa.int64())])
"""Of `vocabularies/<table>.parquet`, in the order of the ids: a value, its id from 1, how often train has it."""


class Vocabulary:
    """The ids of a table's values: found by their hashes, and compared as text, so that none is taken for another.

    Memory: the texts and 28 to 32 bytes a value.

    Args:
        values: distinct texts, none null.
        ids: int64 `[len(values)]`, from 1.
    """

    def __init__(self, values: pa.Array, ids: NDArray[np.int64]) -> None:
        self._values, self._ids = values.cast(pa.large_string()), ids
        hashes = hash_text(self._values)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        again = self._hashes[1:][self._hashes[1:] == self._hashes[:-1]]
        # Where the hashes with the same first bits start; they are evenly spread, so that few have the same.
        bits = max(1, len(hashes).bit_length())
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((self._hashes >> self._shift).astype(np.int64), minlength=1 << bits)
        small = np.int32 if len(hashes) < 2**31 else np.int64
        self._starts = np.concatenate([[0], counts.cumsum()[:-1]]).astype(small)
        self._alike = {
            self._values[int(i)].as_py(): int(ids[i]) for i in np.flatnonzero(np.isin(hashes, again))
        }

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """The vocabulary in a Parquet file with `COLUMNS`."""
        with path.open("rb") as file:
            table = pq.read_table(file, columns=["value", "id"]).combine_chunks()
        values = pa.array([], pa.large_string()) if not table.num_rows else table["value"].chunk(0)
        return cls(values, table["id"].to_numpy())

    def __len__(self) -> int:
        return len(self._values)

    def has(self, pattern: str) -> bool:
        """Whether some value matches a regular expression."""
        return bool(pc.any(pc.match_substring_regex(self._values, pattern)).as_py())

    def ids(self, texts: pa.Array, hashes: NDArray[np.uint64] | None = None) -> NDArray[np.int64]:
        """The id of each text; 0 for null and for values that the vocabulary doesn't have.

        `hashes`: `hash_text` of the texts, where they are known.
        """
        if not len(self._values) or not len(texts):
            return np.zeros(len(texts), np.int64)
        texts = texts.cast(pa.large_string())
        hashes = hash_text(texts) if hashes is None else hashes
        last = len(self._hashes) - 1
        at = np.minimum(self._starts[hashes >> self._shift].astype(np.int64), last)
        before = np.flatnonzero((self._hashes[at] < hashes) & (at < last))
        while len(before):
            at[before] += 1
            before = before[(self._hashes[at[before]] < hashes[before]) & (at[before] < last)]
        found = self._order[at]
        same = pc.equal(self._values.take(pa.array(found)), texts).fill_null(False)
        ids = np.where(same.to_numpy(zero_copy_only=False), self._ids[found], 0)
        if self._alike:
            for i in np.flatnonzero((ids == 0) & (self._hashes[at] == hashes)):
                ids[i] = self._alike.get(texts[int(i)].as_py(), 0)
        return ids
