"""The data card: what is measured while a dataset is written, and told in card.json and README.md beside it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cetnet.models.schema import Schema
from cetnet.trainer.console import shown
from cetnet.trainer.files import without_nonfinite
from cetnet.trainer.metrics import binary_entropy


@dataclass(frozen=True)
class Published:
    """Counts of a published dataset.

    Attributes:
        source: where the counts stand.
        rows: by split.
        tables: rows of each embedding table, with one row for padding and one for values outside the vocabulary.
        total: rows of all tables, where the tables are not published one by one; each counts as in `tables`.
        md5: of the raw files, by name.
    """

    source: str
    rows: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    total: int | None = None
    md5: Mapping[str, str] = field(default_factory=dict)

    def of_test(self) -> "Published":
        """What holds of the test split alone, where train and validation are divided in another way."""
        return Published(self.source, {"test": self.rows["test"]})

    def md5_of(self, directory: Path) -> dict[Path, str]:
        """That of each raw file in a directory."""
        return {directory / name: md5 for name, md5 in self.md5.items()}


@dataclass(frozen=True)
class Card:
    """What the data card says beyond what the writer measures.

    Attributes:
        title, source: of the dataset.
        command: what the dataset comes from.
        split_rule: in words, how the rows were split.
        seed: of whatever was drawn; None where nothing was.
        notes: lines of its last section.
        published: counts to compare with.
    """

    title: str
    source: str
    command: str
    split_rule: str = "the given files"
    seed: int | None = None
    notes: tuple[str, ...] = ()
    published: Published | None = None


@dataclass
class _IdStatistics:
    """Sums over one id feature in one split."""

    ids: int = 0
    unknown: int = 0
    longest: int = 0
    empty: int = 0

    def merge(self, other: "_IdStatistics") -> None:
        self.ids += other.ids
        self.unknown += other.unknown
        self.longest = max(self.longest, other.longest)
        self.empty += other.empty

    def add(self, column: pa.Array) -> None:
        ids = column.flatten() if pa.types.is_list(column.type) else column
        if pa.types.is_list(column.type):
            lengths = pc.list_value_length(column).to_numpy()
            self.longest = max(self.longest, int(lengths.max()))
            self.empty += int((lengths == 0).sum())
        else:
            self.longest = 1
        self.ids += len(ids)
        self.unknown += int((ids.to_numpy() == 0).sum())


@dataclass
class SplitStatistics:
    """Sums over rows of one split; sums over all of them are merged from those over parts."""

    rows: int = 0
    positives: int = 0
    log_loss: float = 0.0  # of the true probabilities, where the schema has them
    first_timestamp: int | None = None
    last_timestamp: int | None = None
    ids: dict[str, _IdStatistics] = field(default_factory=dict)

    def add(self, table: pa.Table, schema: Schema) -> None:
        """Add the sums over more rows of the split."""
        label = table[schema.label].to_numpy()
        self.rows += table.num_rows
        self.positives += int(label.sum())
        if schema.true_probability:
            p = table[schema.true_probability].to_numpy().astype(np.float64)
            self.log_loss -= float(np.where(label == 1, np.log(p), np.log1p(-p)).sum())
        if schema.timestamp:
            times = table[schema.timestamp].to_numpy()
            self._add_times(int(times.min()), int(times.max()))
        for feature in schema.id_features:
            for chunk in table[feature.name].chunks:
                if len(chunk):
                    self.ids.setdefault(feature.name, _IdStatistics()).add(chunk)

    def _add_times(self, first: int, last: int) -> None:
        self.first_timestamp = first if self.first_timestamp is None else min(first, self.first_timestamp)
        self.last_timestamp = last if self.last_timestamp is None else max(last, self.last_timestamp)

    def merge(self, other: "SplitStatistics") -> None:
        """Add the sums over other rows of the split."""
        self.rows += other.rows
        self.positives += other.positives
        self.log_loss += other.log_loss
        if other.first_timestamp is not None and other.last_timestamp is not None:
            self._add_times(other.first_timestamp, other.last_timestamp)
        for name, ids in other.ids.items():
            self.ids.setdefault(name, _IdStatistics()).merge(ids)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "SplitStatistics":
        """The inverse of `dataclasses.asdict`."""
        return cls(**facts | {"ids": {name: _IdStatistics(**ids) for name, ids in facts["ids"].items()}})

    @property
    def positive_rate(self) -> float:
        """Share of rows with label 1."""
        return self.positives / self.rows

    @property
    def bayes_ne(self) -> float:
        """Normalized entropy of the true probabilities: no model has a lower expected one. NaN for a single class."""
        entropy = binary_entropy(self.positive_rate)
        return self.log_loss / self.rows / entropy if entropy else math.nan


def write_card(
    directory: Path, schema: Schema, statistics: Mapping[str, SplitStatistics], card: Card
) -> None:
    """Write card.json, for machines, and README.md, for people; `statistics` are by split."""
    facts = _facts(schema, statistics, card)
    text = json.dumps(without_nonfinite(facts), indent=2) + "\n"
    (directory / "card.json").write_text(text, encoding="utf-8")
    (directory / "README.md").write_text(_readme(schema, statistics, card), encoding="utf-8")


def _facts(schema: Schema, statistics: Mapping[str, SplitStatistics], card: Card) -> dict[str, object]:
    """The data card for machines."""
    splits: dict[str, dict[str, object]] = {}
    for split, sums in statistics.items():
        splits[split] = {
            "rows": sums.rows,
            "positives": sums.positives,
            "positive_rate": sums.positive_rate,
        }
        if schema.timestamp:
            splits[split] |= {"first_timestamp": sums.first_timestamp, "last_timestamp": sums.last_timestamp}
        if schema.true_probability:
            splits[split]["bayes_ne"] = sums.bayes_ne
    features: dict[str, dict[str, object]] = {}
    for feature in schema.features:
        features[feature.name] = feature.model_dump(exclude_none=True, exclude={"name"}, mode="json")
        if feature.table is not None:
            features[feature.name]["splits"] = {
                split: {
                    "mean_length": sums.ids[feature.name].ids / sums.rows,
                    "longest": sums.ids[feature.name].longest,
                    "empty_rows": sums.ids[feature.name].empty / sums.rows,
                    "unknown_ids": sums.ids[feature.name].unknown / max(1, sums.ids[feature.name].ids),
                }
                for split, sums in statistics.items()
            }
    return {
        "title": card.title,
        "source": card.source,
        "command": card.command,
        "seed": card.seed,
        "split_rule": card.split_rule,
        "splits": splits,
        "tables": schema.tables,
        "features": features,
        "notes": list(card.notes),
        **({"published": asdict(card.published)} if card.published else {}),
    }


def _comparison(
    schema: Schema, statistics: Mapping[str, SplitStatistics], published: Published
) -> list[list[str]]:
    """Rows of the card's table that compares with the published counts; of tables, the values without spare rows."""
    counts = [(f"rows of {split}", statistics[split].rows, rows) for split, rows in published.rows.items()]
    counts += [
        (f"values of `{table}`", schema.tables[table] - 1, rows - 2)
        for table, rows in published.tables.items()
    ]
    if published.total is not None:
        tables = len(schema.tables)
        counts.append(
            ("values of all tables", sum(schema.tables.values()) - tables, published.total - 2 * tables)
        )
    return [
        [name, "equal" if ours == theirs else f"ours {ours:,}, published {theirs:,}"]
        for name, ours, theirs in counts
    ]


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)  # a table's name may hold one
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _readme(schema: Schema, statistics: Mapping[str, SplitStatistics], card: Card) -> str:
    """The data card for people."""
    header = ["split", "rows", "positives", "positive rate"]
    header += ["timestamps"] if schema.timestamp else []
    header += ["Bayes NE"] if schema.true_probability else []
    rows = []
    for split, sums in statistics.items():
        row = [split, f"{sums.rows:,}", f"{sums.positives:,}", f"{sums.positive_rate:.4f}"]
        row += [f"{sums.first_timestamp} to {sums.last_timestamp}"] if schema.timestamp else []
        row += [shown(sums.bayes_ne, 4)] if schema.true_probability else []
        rows.append(row)
    feature_rows = []
    for feature in schema.features:
        row = [f"`{feature.name}`", feature.kind, f"`{feature.table}`" if feature.table else ""]
        if feature.table is None:
            row += ["", "", ""]
        else:
            train, test = (statistics[split].ids[feature.name] for split in ("train", "test"))
            length = "1"
            if feature.kind != "categorical":
                empty = train.empty / statistics["train"].rows
                length = f"{feature.mean_length:.2f} (longest {train.longest}, {empty:.1%} empty)"
            row += [length, *(f"{sums.unknown / max(1, sums.ids):.2%}" for sums in (train, test))]
        feature_rows.append(row)
    tables = [[f"`{name}`", f"{count:,}"] for name, count in schema.tables.items()]
    tables.append(["all", f"{sum(schema.tables.values()):,}"])
    roles = [
        f"{role} `{name}`"
        for role, name in (
            ("label", schema.label),
            ("group", schema.group),
            ("timestamp (seconds)", schema.timestamp),
            ("weight", schema.weight),
            ("true probability", schema.true_probability),
        )
        if name
    ]
    sections = [
        f"# {card.title}",
        f"Source: {card.source}\n\nCommand: `{card.command}`\n\nSeed: {card.seed}",
        f"Split: {card.split_rule}",
        _markdown_table(header, rows),
        "## Columns",
        f"Besides the features: {', '.join(roles)}. Id 0 stands for missing values and for values outside "
        "the vocabulary; lists are oldest first.",
        _markdown_table(
            ["feature", "kind", "table", "mean length (train)", "id 0 in train", "id 0 in test"],
            feature_rows,
        ),
        "## Tables",
        _markdown_table(["table", "rows (with id 0)"], tables),
    ]
    if card.published:
        sections += [
            "## Published",
            f"Compared with {card.published.source}:",
            _markdown_table(["count", "ours"], _comparison(schema, statistics, card.published)),
        ]
    if card.notes:
        sections += ["## Notes", "\n".join(f"- {note}" for note in card.notes)]
    return "\n\n".join(sections) + "\n"
