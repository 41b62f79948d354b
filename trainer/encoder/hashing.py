"""The hashing trick: ids of any value, and no vocabulary (Weinberger et al., 2009, arXiv 0902.2206).

The same numbers on every machine, in every version and process: no random seed, no Python `hash`.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def mix64(keys: NDArray) -> NDArray[np.uint64]:
    """The splitmix64 finalizer (Steele et al., OOPSLA 2014): a bijection of uint64."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant; numpy warns of it for scalars
        x = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_text(texts: pa.Array) -> NDArray[np.uint64]:
    """A uint64 per text of an Arrow array; 0 for null.

    splitmix64's finalizer over the UTF-8 bytes, eight at a time (little-endian, zeros at the end), and the length.
    """
    filled = texts.cast(pa.large_string()).fill_null("")
    _, offset_buffer, data_buffer = filled.buffers()
    if not len(filled):
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(offset_buffer, np.int64)[filled.offset : filled.offset + len(filled) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    # The eight bytes from each byte on, as one number: a view, of which the zeros keep the last ones inside.
    words = np.ndarray(len(data) + 1, "<u8", np.append(data, np.zeros(8, np.uint8)), strides=(1,))
    hashes = mix64(lengths.astype(np.uint64))
    rows = np.arange(len(hashes))
    for first in range(0, int(lengths.max()), 8):
        rows = rows[lengths[rows] > first]
        beyond = (8 * np.maximum(first + 8 - lengths[rows], 0)).astype(np.uint64)  # bits of the next text
        hashes[rows] = mix64(hashes[rows] ^ (words[starts[rows] + first] << beyond >> beyond))
    return np.where(texts.is_null().to_numpy(zero_copy_only=False), np.uint64(0), hashes)


def hash_ids(values: pa.Array, rows: int) -> NDArray[np.int64]:
    """Ids in [0, rows) of integers or texts, dictionary-encoded or not, for a table of at least two rows.

    0 for null and the empty text, which are missing; else 1 + `hash_text` modulo `rows` - 1, an integer by its
    decimal text.
    """
    if pa.types.is_dictionary(values.type):
        ids = np.append(hash_ids(values.dictionary, rows), 0)
        return ids[values.indices.cast(pa.int64()).fill_null(-1).to_numpy()]
    texts = values.cast(pa.large_string())
    ids = 1 + (hash_text(texts) % np.uint64(rows - 1)).astype(np.int64)
    return np.where(pc.binary_length(texts).fill_null(0).to_numpy() == 0, 0, ids)
