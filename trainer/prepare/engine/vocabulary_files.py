"""`vocabularies/<table>.parquet`: which value has which id, and how often train has it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from cetnet.trainer.dataset_files import VOCABULARIES
from cetnet.trainer.encoder.hashing import hash_text, mix64
from cetnet.trainer.encoder.vocabulary import COLUMNS
from cetnet.trainer.prepare.engine.arrow_files import batches
from cetnet.trainer.prepare.engine.part_files import PartWriter


def file_of(folder: Path, table: str) -> Path:
    """The vocabulary of a table, in a dataset or a run."""
    return folder / VOCABULARIES / f"{table}.parquet"


def values_digest(values: pa.Array, ids: NDArray[np.int64]) -> int:
    """Of texts and their ids; that of all is the sum of their parts' modulo 2**64."""
    # How a file ends its lines is nothing of a value with several.
    of_lines = pl.Series(values).str.replace_all("\r\n", "\n", literal=True).to_arrow()
    return int(mix64(hash_text(of_lines) ^ mix64(ids)).sum(dtype=np.uint64))


def digest_text(digest: int) -> str:
    """A digest as `schema.yaml` has it: 16 hexadecimal digits."""
    return f"{digest % 2**64:016x}"


class VocabularyWriter:
    """One such file, whose bytes don't depend on how its values are cut into pieces."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self._parts = PartWriter(path, COLUMNS)
        self._next = 1
        self._digest = 0

    def write(self, values: pa.Array, counts: NDArray[np.int64]) -> None:
        """Add distinct texts, which get the next ids, and how often train has each."""
        ids = np.arange(self._next, self._next + len(values))
        self._digest += values_digest(values, ids)
        self._parts.write(pa.table([values.cast(pa.large_string()), ids, counts], schema=COLUMNS))
        self._next += len(values)

    def write_kept(self, numbered: Sequence[Path]) -> None:
        """Add the values that `number_values` kept in each range."""
        for folder in numbered:
            for batch in batches(folder / "kept.arrow"):
                self.write(batch["value"], batch["count"].to_numpy())

    def close(self) -> str:
        """End the file; the digest of its values and their ids."""
        self._parts.close()
        return digest_text(self._digest)
