"""The data card: what is measured while a dataset is written, and told in card.json and README.md beside it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cetnet.models.schema import Schema
from cetnet.trainer.console import shown
from cetnet.trainer.files import without_nonfinite
from cetnet.trainer.prepare.engine.drift import Training, drift, table_rows
from cetnet.trainer.prepare.engine.statistics import SplitStatistics


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
        like: the dataset or run whose vocabularies the rows are read by.
        training: the features of the rows that it was trained on; empty: nothing is known of them.
    """

    title: str
    source: str
    command: str
    split_rule: str = "the given files"
    seed: int | None = None
    notes: tuple[str, ...] = ()
    published: Published | None = None
    like: str | None = None
    training: Training | None = None


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
            "positives": sums.positives if sums.labels else None,
            "positive_rate": sums.positive_rate,
        }
        if schema.timestamp:
            splits[split] |= {"first_timestamp": sums.first_timestamp, "last_timestamp": sums.last_timestamp}
        if schema.true_probability:
            splits[split]["bayes_ne"] = sums.bayes_ne
    features: dict[str, dict[str, object]] = {}
    for feature in schema.features:
        features[feature.name] = feature.model_dump(exclude_none=True, exclude={"name"}, mode="json")
        features[feature.name]["splits"] = {
            split: sums.of_feature(feature.name) for split, sums in statistics.items()
        }
    like: dict[str, object] = {}
    if card.training is not None:
        like = {
            "like": card.like,
            "drift": [asdict(each) for each in drift(schema, card.training, statistics)],
        }
        if "train" not in statistics:
            like["training"] = card.training
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
        **like,
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


def _since_training(schema: Schema, statistics: Mapping[str, SplitStatistics], card: Card) -> list[str]:
    found = drift(schema, card.training or {}, statistics)
    if not found:
        return [f"Nothing is known of the rows that {card.like} was trained on: it has no card.json."]
    header = [
        "column",
        "unknown or missing in training",
        "now",
        "mean or mean length in training",
        "now",
        "jumped",
    ]
    return [
        f"All rows beside those that {card.like} was trained on, the largest change first. Unknown are values that "
        "had no id then, missing ones among them; means are of numbers as the model reads them.",
        _markdown_table(header, table_rows(found)),
    ]


def _readme(schema: Schema, statistics: Mapping[str, SplitStatistics], card: Card) -> str:
    """The data card for people."""
    header = ["split", "rows", "positives", "positive rate"]
    header += ["timestamps"] if schema.timestamp else []
    header += ["Bayes NE"] if schema.true_probability else []
    rows = []
    for split, sums in statistics.items():
        row = [split, f"{sums.rows:,}"]
        row += [f"{sums.positives:,}", f"{sums.positive_rate:.4f}"] if sums.labels else ["no label", ""]
        row += [f"{sums.first_timestamp} to {sums.last_timestamp}"] if schema.timestamp else []
        row += [shown(sums.bayes_ne, 4)] if schema.true_probability else []
        rows.append(row)
    first = next(iter(statistics))
    shown_splits = list(dict.fromkeys(split for split in (first, "test") if split in statistics))
    feature_rows = []
    for feature in schema.features:
        row = [f"`{feature.name}`", feature.kind, f"`{feature.table}`" if feature.table else ""]
        of_splits = [statistics[split].of_feature(feature.name) for split in shown_splits]
        of_first = of_splits[0]
        if feature.table is None:
            row += [f"{of_first['mean']:.4g}", *(f"{each['missing']:.2%}" for each in of_splits)]
        else:
            length = "1"
            if feature.kind != "categorical":
                longest, empty = of_first["longest"], of_first["empty_rows"]
                length = f"{feature.mean_length:.2f} (longest {longest}, {empty:.1%} empty)"
            row += [length, *(f"{each['unknown_ids']:.2%}" for each in of_splits)]
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
            [
                "feature",
                "kind",
                "table",
                f"mean length, or mean ({first})",
                *(f"id 0, or missing, in {split}" for split in shown_splits),
            ],
            feature_rows,
        ),
        "## Tables",
        _markdown_table(["table", "rows (with id 0)"], tables),
    ]
    if card.training is not None:
        sections += ["## Since training", *_since_training(schema, statistics, card)]
    if card.published:
        sections += [
            "## Published",
            f"Compared with {card.published.source}:",
            _markdown_table(["count", "ours"], _comparison(schema, statistics, card.published)),
        ]
    if card.notes:
        sections += ["## Notes", "\n".join(f"- {note}" for note in card.notes)]
    return "\n\n".join(sections) + "\n"
