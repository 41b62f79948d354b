"""A split in memory, for contenders without a reader; only NumPy and pyarrow, for environments that lack ours."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

Columns = dict[str, NDArray]


def read_columns(data: Path, max_rows: int, split: str = "train") -> Columns:
    """The first rows of a split.

    Ids are int64 `[n]`, numbers float32 `[n]`, sequences int64 `[n, max_length]`, oldest first, with zeros before.
    """
    features = {
        f["name"]: f for f in yaml.safe_load((data / "schema.yaml").read_text(encoding="utf-8"))["features"]
    }
    table = pq.read_table(data / split).slice(0, max_rows)
    columns: Columns = {}
    for name in table.column_names:
        if (longest := features.get(name, {}).get("max_length")) is None:
            columns[name] = table[name].to_numpy()
            continue
        lists = table[name].combine_chunks()
        columns[name] = np.zeros((len(lists), longest), np.int64)
        lengths = np.diff(lists.offsets.to_numpy())
        columns[name][np.arange(longest) >= longest - lengths[:, None]] = lists.flatten().to_numpy()
    return {
        name: column.astype(np.int64) if column.dtype == np.int32 else column
        for name, column in columns.items()
    }


def side_by_side(columns: Columns, prefix: str) -> NDArray:
    """The columns of this prefix, in their order, `[n, k]`."""
    return np.stack([column for name, column in columns.items() if name.startswith(prefix)], axis=1)
