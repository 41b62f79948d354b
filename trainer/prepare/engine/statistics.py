"""What is measured of rows while they are written, for the data card."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cetnet.models.schema import Schema
from cetnet.trainer.metrics import binary_entropy


@dataclass(frozen=True)
class Measure:
    """What to measure.

    Attributes:
        schema: of the rows.
        labelled: whether they have the label.
        known: rows of the tables that have grown since training, as they were then.
    """

    schema: Schema
    labelled: bool = True
    known: Mapping[str, int] = field(default_factory=dict)


@dataclass
class IdStatistics:
    """Sums over one id feature in one split; `new` are ids beyond those known."""

    ids: int = 0
    unknown: int = 0
    new: int = 0
    longest: int = 0
    empty: int = 0

    def merge(self, other: "IdStatistics") -> None:
        """Add the sums over other rows."""
        self.ids += other.ids
        self.unknown += other.unknown
        self.new += other.new
        self.longest = max(self.longest, other.longest)
        self.empty += other.empty

    def add(self, column: pa.Array, known: int | None) -> None:
        """Add more rows."""
        ids = column.flatten() if pa.types.is_list(column.type) else column
        if pa.types.is_list(column.type):
            lengths = pc.list_value_length(column).to_numpy()
            self.longest = max(self.longest, int(lengths.max()))
            self.empty += int((lengths == 0).sum())
        else:
            self.longest = 1
        self.ids += len(ids)
        self.unknown += int((ids.to_numpy() == 0).sum())
        if known is not None:
            self.new += int((ids.to_numpy() >= known).sum())


@dataclass
class DenseStatistics:
    """Mean, and sum of the squared deviations, of a dense feature as the model reads it; and missing values."""

    rows: int = 0
    mean: float = 0.0
    squares: float = 0.0
    missing: int = 0

    def merge(self, other: "DenseStatistics") -> None:
        """Add other rows (Chan, Golub and LeVeque, 1983)."""
        self.missing += other.missing
        if rows := self.rows + other.rows:
            apart = other.mean - self.mean
            self.squares += other.squares + apart**2 * self.rows * other.rows / rows
            self.mean += apart * other.rows / rows
            self.rows = rows

    def add(self, column: pa.Array) -> None:
        """Add more rows."""
        values = column.to_numpy().astype(np.float64)
        mean = float(values.mean())
        self.merge(DenseStatistics(len(values), mean, float(((values - mean) ** 2).sum())))

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.squares / self.rows)


@dataclass
class SplitStatistics:
    """Sums over rows of one split; sums over all of them are merged from those over parts, in their order."""

    rows: int = 0
    labels: int = 0
    positives: int = 0
    log_loss: float = 0.0  # of the true probabilities, where the schema has them
    first_timestamp: int | None = None
    last_timestamp: int | None = None
    ids: dict[str, IdStatistics] = field(default_factory=dict)
    dense: dict[str, DenseStatistics] = field(default_factory=dict)

    def add(self, measure: Measure, table: pa.Table) -> None:
        """Add the sums over more rows of the split."""
        schema = measure.schema
        self.rows += table.num_rows
        if measure.labelled:
            label = table[schema.label].to_numpy()
            self.labels += table.num_rows
            self.positives += int(label.sum())
            if schema.true_probability:
                p = table[schema.true_probability].to_numpy().astype(np.float64)
                self.log_loss -= float(np.where(label == 1, np.log(p), np.log1p(-p)).sum())
        if schema.timestamp:
            times = table[schema.timestamp].to_numpy()
            self._add_times(int(times.min()), int(times.max()))
        for feature in schema.features:
            for chunk in table[feature.name].chunks:
                if feature.table is not None:
                    known = measure.known.get(feature.table)
                    self.ids.setdefault(feature.name, IdStatistics()).add(chunk, known)
                else:
                    self.dense.setdefault(feature.name, DenseStatistics()).add(chunk)

    def _add_times(self, first: int, last: int) -> None:
        self.first_timestamp = first if self.first_timestamp is None else min(first, self.first_timestamp)
        self.last_timestamp = last if self.last_timestamp is None else max(last, self.last_timestamp)

    def merge(self, other: "SplitStatistics") -> None:
        """Add the sums over other rows of the split."""
        self.rows += other.rows
        self.labels += other.labels
        self.positives += other.positives
        self.log_loss += other.log_loss
        if other.first_timestamp is not None and other.last_timestamp is not None:
            self._add_times(other.first_timestamp, other.last_timestamp)
        for name, ids in other.ids.items():
            self.ids.setdefault(name, IdStatistics()).merge(ids)
        for name, dense in other.dense.items():
            self.dense.setdefault(name, DenseStatistics()).merge(dense)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "SplitStatistics":
        """The inverse of `dataclasses.asdict`."""
        ids = {name: IdStatistics(**of_feature) for name, of_feature in facts["ids"].items()}
        dense = {name: DenseStatistics(**of_feature) for name, of_feature in facts["dense"].items()}
        return cls(**facts | {"ids": ids, "dense": dense})

    @property
    def positive_rate(self) -> float:
        """Share of rows with label 1; NaN without labels."""
        return self.positives / self.labels if self.labels else math.nan

    @property
    def bayes_ne(self) -> float:
        """Normalized entropy of the true probabilities: no model has a lower expected one. NaN for a single class."""
        entropy = binary_entropy(self.positive_rate) if self.labels else 0.0
        return self.log_loss / self.rows / entropy if entropy else math.nan

    def of_feature(self, name: str) -> dict[str, Any]:
        """What the card says of a feature in this split."""
        if name in self.dense:
            dense = self.dense[name]
            return {"missing": dense.missing / self.rows, "mean": dense.mean, "deviation": dense.deviation}
        ids = self.ids[name]
        number = max(1, ids.ids)
        return {
            "mean_length": ids.ids / self.rows,
            "longest": ids.longest,
            "empty_rows": ids.empty / self.rows,
            "unknown_ids": ids.unknown / number,
            **({"new_ids": ids.new / number} if ids.new else {}),
        }
