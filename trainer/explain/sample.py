"""Rows of a split held in memory, whose features can be permuted; and which features belong together."""

import copy
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.data.dataset import Dataset, Piece
from cetnet.trainer.data.decoded import Lists, Rows
from cetnet.trainer.data.parquet_files import RowGroup
from cetnet.trainer.errors import UserError


class Sample(Dataset):
    """Rows drawn from a split without replacement, in its order: to the reader, a split of one row group.

    Memory: the decoded rows, and a row group of the split while they are read.

    Args:
        dataset: the split.
        rows: how many; all, if it has fewer.
        seed: fixes which.

    Attributes:
        content: the rows; their numbers count from 0.

    Raises:
        UserError: a row group can't be read, or holds bad rows.
    """

    def __init__(self, dataset: Dataset, rows: int, seed: int) -> None:
        self.path, self.split, self.bad_rows = dataset.path, dataset.split, dataset.bad_rows
        self.schema, self._source = dataset.schema, dataset
        self._chosen = np.ones(dataset.num_rows, np.bool_)
        if rows < dataset.num_rows:
            self._chosen[:] = False
            drawn = np.random.default_rng(seed).choice(dataset.num_rows, rows, replace=False, shuffle=False)
            self._chosen[drawn] = True
        parts = []
        for group in dataset.row_groups:
            chosen = np.flatnonzero(self._chosen[group.first_row :][: group.num_rows])
            if len(chosen):
                parts.append(dataset.read([Piece(group, 0, group.num_rows)]).take(chosen))
        self.content = _joined(parts)
        self.num_rows = len(self.content.row)
        self.row_groups = [RowGroup(Path(self.split), 0, self.num_rows, 0, 0)]

    def read(self, pieces: Sequence[Piece], permutation: np.ndarray | None = None) -> Rows:
        """The rows of a piece, in the order of the sample."""
        (piece,) = pieces
        assert permutation is None
        return self.content.slice(piece.start, piece.stop)

    def column(self, name: str, wanted: np.ndarray | None = None) -> pa.Array:
        """A column of all rows."""
        assert wanted is None
        return self._source.column(name, self._chosen)

    def permuted(self, names: Sequence[str], seed: int) -> "Sample":
        """The sample with the values of these features taken from other rows, all from the same: a permutation.

        It is one of the seed and the names. A list goes as a whole.
        """
        order = np.random.default_rng((seed, crc32("+".join(names).encode()))).permutation(self.num_rows)
        numbers, ids, lists = self.content.numbers.copy(), self.content.ids.copy(), list(self.content.lists)
        for name in names:
            feature = next(each for each in self.schema.features if each.name == name)
            if feature.kind == "dense":
                at = 2 + self.schema.dense_features.index(feature)
                numbers[at] = numbers[at, order]
            elif feature.kind == "categorical":
                at = self.schema.of_kind("categorical").index(feature)
                ids[at] = ids[at, order]
            else:
                at = self.schema.list_features.index(feature)
                lists[at] = lists[at].take(order)
        other = copy.copy(self)
        other.content = self.content._replace(numbers=numbers, ids=ids, lists=lists)
        return other


def _joined(parts: list[Rows]) -> Rows:
    lists = []
    for each in zip(*(rows.lists for rows in parts), strict=True):
        lengths = np.concatenate([np.diff(one.offsets) for one in each])
        offsets = np.concatenate([[0], lengths.cumsum(dtype=np.int64)])
        lists.append(Lists(np.concatenate([one.ids for one in each]), offsets))
    return Rows(
        np.arange(sum(len(rows.row) for rows in parts)),
        np.concatenate([rows.numbers for rows in parts], axis=1),
        np.concatenate([rows.ids for rows in parts], axis=1),
        lists,
        {},
    )


def permuted_together(schema: Schema, wanted: Sequence[str]) -> list[tuple[str, ...]]:
    """The features that are permuted together, each group in the schema's order.

    Sequences of one behavior are one list of events, so that they go together whether named together or not.

    Args:
        schema: the features.
        wanted: names, or several joined by +, which go together; none: every feature.

    Raises:
        UserError: a name is no feature.
    """
    known = {feature.name: feature for feature in schema.features}
    groups: dict[tuple[str, ...], None] = {}
    for entry in wanted or known:
        names = entry.split("+")
        for name in names:
            if name not in known:
                raise UserError(f"--features {entry}: no feature {name!r}; there are {', '.join(known)}")
        asked = [known[name] for name in names]
        together = [each.name for each in schema.features if any(_one(each, other) for other in asked)]
        groups[tuple(together)] = None
    return list(groups)


def _one(feature: Feature, other: Feature) -> bool:
    aligned = feature.kind == other.kind == "sequence" and feature.behavior == other.behavior
    return aligned or feature.name == other.name
