"""What changed since training: the columns of new rows beside those that a model was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cetnet.models.schema import Schema
from cetnet.trainer.prepare.engine.statistics import SplitStatistics

# Beyond these something is said: shares of values, standard deviations of a mean, and the share of a mean length.
_JUMPS = {"unknown": 0.1, "missing": 0.1, "mean": 0.5, "mean_length": 0.5}
Training = Mapping[str, Mapping[str, float]]  # of each feature, as `SplitStatistics.of_feature`


@dataclass(frozen=True)
class Drift:
    """One column, then and now.

    Attributes:
        feature: its name.
        training, now: of ids `unknown` (share of values that had no id at training) and `mean_length`; of numbers
            `missing` (share) and `mean`, as the model reads it.
        changes: of each of these; the mean's in standard deviations, the length's as a share of training's.
    """

    feature: str
    training: Mapping[str, float]
    now: Mapping[str, float]
    changes: Mapping[str, float]

    @property
    def largest(self) -> float:
        """The largest change."""
        return max(map(abs, self.changes.values()), default=0.0)

    @property
    def jumps(self) -> list[str]:
        """What changed so much that it should be looked at; fewer unknown or missing values never do."""
        return [
            name
            for name, change in self.changes.items()
            if (change if name == "unknown" else abs(change)) >= _JUMPS[name]
        ]


def training_of(card: Mapping[str, Any]) -> Training:
    """The features of the training rows by a card.json: of its own train split, or of the dataset it is like."""
    own = {
        name: feature["splits"]["train"]
        for name, feature in card.get("features", {}).items()
        if "train" in feature.get("splits", {})
    }
    return own or card.get("training", {})


def drift(schema: Schema, training: Training, splits: Mapping[str, SplitStatistics]) -> list[Drift]:
    """Each feature that training's numbers are known of, all splits together; the largest change first."""
    whole = SplitStatistics()
    for statistics in splits.values():
        whole.merge(statistics)
    found = []
    for feature in schema.features:
        if (before := training.get(feature.name)) is None:
            continue
        now = whole.of_feature(feature.name)
        if feature.table is None:
            names = {"missing": "missing", "mean": "mean"}
        else:
            names = {"unknown": "unknown_ids"}
            if feature.kind != "categorical":
                names["mean_length"] = "mean_length"
        then = {name: before[key] for name, key in names.items() if before.get(key) is not None}
        today = {name: now[key] for name, key in names.items() if name in then}
        if "unknown" in today:
            ids = whole.ids[feature.name]
            today["unknown"] = (ids.unknown + ids.new) / max(1, ids.ids)
        changes = {name: _change(name, then[name], today[name], before) for name in then}
        found.append(Drift(feature.name, then, today, changes))
    return sorted(found, key=lambda each: -each.largest)


def _change(name: str, then: float, now: float, before: Mapping[str, float]) -> float:
    if name in ("unknown", "missing"):
        return now - then
    scale = abs(then) if name == "mean_length" else before.get("deviation") or abs(then)
    return (now - then) / (scale or 1.0)


def warning(found: list[Drift]) -> str | None:
    """A line about what jumped, if anything did."""
    jumped = [f"{_words(each, name)}" for each in found for name in each.jumps]
    if not jumped:
        return None
    more = f", and {len(jumped) - 3} more" if len(jumped) > 3 else ""
    return f"since training, {'; '.join(jumped[:3])}{more}"


def _words(each: Drift, name: str) -> str:
    then, now = each.training[name], each.now[name]
    if name in ("unknown", "missing"):
        which = "new" if name == "unknown" else name  # to training, though they may have got ids by now
        return f"{which} values of `{each.feature}` went from {then:.1%} to {now:.1%}"
    what = "length" if name == "mean_length" else "value"
    return f"the mean {what} of `{each.feature}` went from {then:.4g} to {now:.4g}"


def table_rows(found: list[Drift]) -> list[list[str]]:
    """The rows of the card's table."""
    return [
        [
            f"`{each.feature}`",
            *_cells(each, ("unknown", "missing"), ".2%"),
            *_cells(each, ("mean_length", "mean"), ".4g"),
            ", ".join(each.jumps),
        ]
        for each in found
    ]


def _cells(each: Drift, names: tuple[str, str], form: str) -> list[str]:
    for name in names:
        if name in each.training:
            return [f"{each.training[name]:{form}}", f"{each.now[name]:{form}}"]
    return ["", ""]
