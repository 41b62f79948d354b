"""What the footers of a split's files tell of its values before any is read, where they have statistics."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from cetnet.trainer.data.dataset import Dataset, Piece, RowGroup
from cetnet.trainer.errors import UserError

_LARGEST = float(np.finfo(np.float32).max)


class _Column(NamedTuple):
    """A column of a row group: its values lie between two, unless all are null; how many are, lists aside."""

    low: float
    high: float
    nulls: int


def check_values(dataset: Dataset, limit: int | None = None) -> None:
    """Find bad rows before they are met.

    Args:
        dataset: the split; if it quarantines bad rows, only their number matters.
        limit: how many may be quarantined, if all rows will be read.

    Raises:
        UserError: a row group has a bad row, or a column more nulls than the limit.
    """
    nulls: dict[str, int] = {}
    allowed = _allowed(dataset)
    for group, columns in _row_groups(dataset, list(allowed)):
        for name, column in columns.items():
            nulls[name] = nulls.get(name, 0) + column.nulls
            good = not column.nulls and allowed[name][0] <= column.low and column.high <= allowed[name][1]
            if dataset.bad_rows == "fail" and not good:
                # Reading it names the row. If there is no bad one, such statistics tell nothing.
                dataset.read([Piece(group, 0, group.num_rows)])
                return
    if dataset.bad_rows == "quarantine" and limit is not None and nulls:
        name = max(nulls, key=nulls.__getitem__)
        if nulls[name] > limit:
            raise UserError(
                f"{dataset.path / dataset.split}: column {name!r} has {nulls[name]:,} nulls, more than "
                f"data.bad_rows_limit={limit}; fix the data and prepare it again, or raise the limit"
            )


def only_value(dataset: Dataset, name: str) -> float | None:
    """The value that a column has in every row that isn't null; None if it has several, or that isn't known."""
    low, high = np.inf, -np.inf
    for _, columns in _row_groups(dataset, [name]):
        if (column := columns.get(name)) is None:
            return None
        low, high = min(low, column.low), max(high, column.high)
        if low < high:
            return None
    return float(low) + 0.0 if low == high else None  # the least zero of a float column is -0.0


def is_null(dataset: Dataset, name: str) -> bool:
    """Whether a column is known to be null in every row."""
    nulls = sum(columns[name].nulls for _, columns in _row_groups(dataset, [name]) if columns)
    return nulls == dataset.num_rows


def _allowed(dataset: Dataset) -> dict[str, tuple[float, float]]:
    """By column that is read, and may not be null: the range of its values."""
    schema = dataset.schema
    ranges: dict[str, tuple[float, float]] = {schema.label: (0, 1)}
    if schema.weight:
        ranges[schema.weight] = (0, _LARGEST)
    ranges |= {feature.name: (-_LARGEST, _LARGEST) for feature in schema.dense_features}
    of_any_value = schema.id_ranges
    for feature in schema.id_features:
        if feature.table not in of_any_value:
            ranges[feature.name] = (0, schema.tables[str(feature.table)] - 1)
    return {name: ranges[name] for name in dataset.names if name in ranges}


def _row_groups(dataset: Dataset, names: list[str]) -> Iterator[tuple[RowGroup, dict[str, _Column]]]:
    """Each row group with those of the columns that it has statistics of."""
    for file, groups in groupby(dataset.row_groups, lambda group: group.file):
        metadata = dataset.metadata(file)
        leaves = _leaves(metadata)
        known = [(name, *leaves[name]) for name in names if name in leaves]
        for group in groups:
            of_group = metadata.row_group(group.index)
            columns = {}
            for name, index, is_list in known:
                if column := _column(of_group.column(index).statistics, group.num_rows, is_list):
                    columns[name] = column
            yield group, columns


def _column(statistics: pq.Statistics | None, num_rows: int, is_list: bool) -> _Column | None:
    if statistics is None or not statistics.has_null_count:
        return None
    nulls = 0 if is_list else statistics.null_count  # of a list's values, empty lists are some
    if statistics.has_min_max and isinstance(statistics.min, (int, float)):
        return _Column(statistics.min, statistics.max, nulls)
    return _Column(np.inf, -np.inf, nulls) if nulls == num_rows else None


def _leaves(metadata: pq.FileMetaData) -> dict[str, tuple[int, bool]]:
    """By column: where its values are among the file's leaves, and whether it is a list."""
    leaves = [metadata.schema.column(index) for index in range(len(metadata.schema))]
    return {
        leaf.path.split(".")[0] if leaf.max_repetition_level else leaf.path: (
            index,
            leaf.max_repetition_level > 0,
        )
        for index, leaf in enumerate(leaves)
    }
