"""Given vectors of values (pictures, texts), as the rows of a table that isn't trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.trainer.errors import UserError

BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Vectors:
    """Vectors in a file: `keys`, distinct texts in order, `size` numbers each.

    `copy(target)` writes those of `keys[i]` to row i + 1 of `target`, float32 [1 + len(keys), size].
    """

    path: Path
    keys: pl.Series
    size: int
    copy: Callable[[np.ndarray], None]


def open_vectors(path: Path) -> Vectors:
    """The vectors of a file; a file that isn't one of these is a UserError.

    - `.npy`: numbers [n, size]; the values are 0 to n - 1. Not read into memory.
    - `.parquet`: columns `key` and `vector`, a list of numbers. In memory: keys, and a row group.
    - `.h5`: datasets `key` [n] and `value` [n, size], as BARS has them; needs the package h5py.
    """
    readers = {".npy": _open_npy, ".parquet": _open_parquet, ".h5": _open_h5}
    if path.suffix not in readers:
        raise UserError(f"{path}: vectors are read from {', '.join(readers)} files")
    try:
        return readers[path.suffix](path)
    except (OSError, EOFError, ValueError, KeyError, pa.ArrowException) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error) or "cut short"
        )
        raise UserError(f"{path}: not readable as vectors: {reason.splitlines()[0]}") from error


def write_vectors(folder: Path, path: Path) -> None:
    """vectors.npy: float32 [1 + len(keys), size], zeros, then the vectors of a file in the order of their keys.

    A task; see `preparation`. Vectors that aren't finite are a UserError.
    """
    vectors = open_vectors(path)
    shape = (1 + len(vectors.keys), vectors.size)
    target = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, shape)
    vectors.copy(target)
    target.flush()


def _checked(path: Path, block: np.ndarray) -> np.ndarray:
    if not np.isfinite(block).all():
        raise UserError(f"{path} has vectors that are not finite")
    return block


def _ranked(path: Path, keys: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The keys as text in order, and the place of each in it."""
    text = keys.cast(pl.String)
    order = text.arg_sort()
    ordered = text.gather(order)
    if text.null_count() or (len(text) and ordered.n_unique() < len(ordered)):
        raise UserError(f"{path} has a key twice, or none")
    rank = np.empty(len(text), np.int64)
    rank[order.to_numpy()] = np.arange(len(text))
    return ordered, rank


def _from_rows(path: Path, keys: pl.Series, rows: Callable[[int, int], np.ndarray], size: int) -> Vectors:
    """Vectors that lie in an array; `rows` reads some of them."""
    ordered, rank = _ranked(path, keys)
    step = max(1, BLOCK_BYTES // (4 * size))

    def copy(target: np.ndarray) -> None:
        for start in range(0, len(rank), step):
            target[1 + rank[start : start + step]] = _checked(path, rows(start, start + step))

    return Vectors(path, ordered, size, copy)


def _check_shape(shape: tuple[int, ...], kind: str) -> None:
    if len(shape) != 2 or not all(shape) or kind not in "fiu":
        raise ValueError(f"expected numbers [values, size], found {list(shape)}")


def _open_npy(path: Path) -> Vectors:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_shape(array.shape, array.dtype.kind)
    keys = pl.Series(np.arange(len(array)))
    return _from_rows(path, keys, lambda start, end: array[start:end], array.shape[1])


def _open_h5(path: Path) -> Vectors:
    try:
        import h5py
    except ModuleNotFoundError:
        raise UserError(f"{path}: reading .h5 needs the package h5py: pip install 'cetnet[hdf5]'") from None
    with h5py.File(path) as file:
        keys, shape, kind = file["key"][:], file["value"].shape, file["value"].dtype.kind
    _check_shape(shape, kind)
    if len(keys) != shape[0]:
        raise ValueError(f"{len(keys)} keys, but {shape[0]} values")
    if keys.dtype.kind not in "iu":
        keys = [key.decode() if isinstance(key, bytes) else str(key) for key in keys]

    def rows(start: int, end: int) -> np.ndarray:
        with h5py.File(path) as file:
            return np.asarray(file["value"][start:end])

    return _from_rows(path, pl.Series(keys), rows, shape[1])


def _open_parquet(path: Path) -> Vectors:
    with pq.ParquetFile(path) as file:
        keys = pl.Series(file.read(["key"])["key"])
        first = file.read_row_group(0, ["vector"])["vector"].combine_chunks() if file.num_row_groups else None
    size = len(first[0].as_py() or ()) if first is not None and len(first) else 0
    _check_shape((len(keys), size), "f")
    ordered, rank = _ranked(path, keys)

    def copy(target: np.ndarray) -> None:
        start = 0
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                column = pl.Series(file.read_row_group(group, ["vector"])["vector"])
                lengths = column.list.len() if column.dtype == pl.List else column.arr.to_list().list.len()
                if column.null_count() or (lengths != size).any():
                    raise UserError(f"{path}: not every vector has {size} numbers")
                block = column.explode().cast(pl.Float32).to_numpy().reshape(-1, size)
                target[1 + rank[start : start + len(column)]] = _checked(path, block)
                start += len(column)

    return Vectors(path, ordered, size, copy)
