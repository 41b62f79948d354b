"""`vocabularies/<table>.parquet`: which value has which id, and how often train has it."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from cetnet.trainer.encoder.hashing import hash_text, mix64
from cetnet.trainer.encoder.vocabulary import COLUMNS
from cetnet.trainer.prepare.engine.part_files import PartWriter

FOLDER = "vocabularies"


def file_of(folder: Path, table: str) -> Path:
    """The vocabulary of a table, in a dataset or a run."""
    return folder / FOLDER / f"{table}.parquet"


class VocabularyWriter:
    """One such file, whose bytes don't depend on how its values are cut into pieces."""

    def __init__(self, path: Path) -> None:
        self._parts = PartWriter(path, COLUMNS)
        self._next = 1
        self._digest = 0

    def write(self, values: pa.Array, counts: NDArray[np.int64]) -> None:
        """Add distinct texts, which get the next ids, and how often train has each."""
        ids = np.arange(self._next, self._next + len(values))
        # How a file ends its lines is nothing of a value with several.
        of_lines = pl.Series(values).str.replace_all("\r\n", "\n", literal=True).to_arrow()
        hashes = mix64(hash_text(of_lines) ^ mix64(ids))
        self._digest = (self._digest + int(hashes.sum(dtype=np.uint64))) % 2**64
        self._parts.write(pa.table([values.cast(pa.large_string()), ids, counts], schema=COLUMNS))
        self._next += len(values)

    def close(self) -> str:
        """End the file; 16 hexadecimal digits that tell the values and their ids."""
        self._parts.close()
        return f"{self._digest:016x}"
