"""Which component decided: the confidence weights of a fusion, over slices of the rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from cetnet.models.config import CETNetConfig
from cetnet.models.fusion import confidence_weights
from cetnet.models.schema import Feature
from cetnet.trainer.explain.importance import Evaluated
from cetnet.trainer.explain.sample import Sample

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

TOP_VALUES, PARTS = 10, 5


@dataclass(frozen=True)
class Slice:
    """Some of the rows.

    Attributes:
        column: the feature that they are told by; empty for all rows, and for those that a component decided.
        value: its value there, in words.
        rows: how many.
        weight: of each component, its mean weight there.
        decides: of each component, the share of the rows in which its weight is the largest.
        ne: of each output, its NE there, over these rows' own base rate.
    """

    column: str
    value: str
    rows: int
    weight: dict[str, float]
    decides: dict[str, float]
    ne: dict[str, float]


def why_no_weights(model: CETNetConfig) -> str | None:
    """Why a model has no confidence weights, in words; None if it has."""
    if len(model.components) == 1:
        return "a single component decides alone"
    if not model.fusion.mode.startswith("confidence"):
        return f"fusion.mode {model.fusion.mode} does not weigh components by their confidence"
    if not model.component_weight:
        return "with component_weight 0 components have no outputs of their own, which the weights come from"
    return None


def weights_of(probability: Mapping[str, Floats], model: CETNetConfig) -> dict[str, Floats]:
    """The confidence weight of each component in each row, from the components' probabilities `[n]`."""
    each = np.stack([probability[name] for name in model.components], axis=1)
    # In double precision a probability is 0 or 1 only where its entropy is nothing beside that of others.
    logits = torch.logit(torch.from_numpy(each), eps=np.finfo(np.float64).eps)
    weights = confidence_weights(logits, model.fusion.temperature).numpy()
    return dict(zip(model.components, weights.T, strict=True))


def who_decided(
    sample: Sample,
    rows: Evaluated,
    probability: Mapping[str, Floats],
    weights: Mapping[str, Floats],
    by: Sequence[str],
    vocabularies: Path,
) -> list[Slice]:
    """All rows, those that each component decided, and those of the most frequent values of the features `by`.

    `vocabularies` is the folder of the tables' vocabularies, from which ids get their values, if it is there.
    """
    largest = np.stack(list(weights.values())).argmax(axis=0)

    def of(column: str, value: str, inside: Mask) -> Slice:
        return Slice(
            column,
            value,
            int(inside.sum()),
            {name: float(weight[inside].mean()) for name, weight in weights.items()},
            {name: float((largest[inside] == i).mean()) for i, name in enumerate(weights)},
            {output: rows.ne(each, inside) for output, each in probability.items()},
        )

    found = [of("", "all rows", np.ones(len(largest), np.bool_))]
    for i, name in enumerate(weights):
        if (decided := largest == i).any():
            found.append(of("", f"{name} decides", decided))
    features = {feature.name: feature for feature in sample.schema.features}
    for name in by:
        found += [of(name, *each) for each in _slices(sample, features[name], vocabularies)]
    return found


def _slices(sample: Sample, feature: Feature, vocabularies: Path) -> Iterator[tuple[str, Mask]]:
    """Values of a feature in words, and the rows that have them."""
    schema, content = sample.schema, sample.content
    if feature.kind == "dense":
        yield from _parts(content.numbers[2 + schema.dense_features.index(feature)], "", "{:.4g}")
    elif feature.kind != "categorical":
        lengths = np.diff(content.lists[schema.list_features.index(feature)].offsets)
        yield from _parts(lengths, "length ", "{:.0f}")
    else:
        ids = content.ids[schema.of_kind("categorical").index(feature)]
        values, counts = np.unique(ids, return_counts=True)
        top = values[np.argsort(-counts, kind="stable")][:TOP_VALUES]
        for value, name in zip(top, _names(top, vocabularies / f"{feature.table}.parquet"), strict=True):
            yield name, ids == value
        if len(values) > len(top):
            yield f"others ({len(values) - len(top):,} values)", ~np.isin(ids, top)


def _parts(values: NDArray, what: str, number: str) -> Iterator[tuple[str, Mask]]:
    """Parts of about equal size in the order of the values."""
    ends = np.unique(np.quantile(values, np.arange(1, PARTS + 1) / PARTS, method="inverted_cdf"))
    part = np.searchsorted(ends, values)
    for i in range(len(ends)):
        inside = part == i
        low, high = (number.format(end) for end in (values[inside].min(), values[inside].max()))
        yield f"{what}{low}" + (f" to {high}" if high != low else ""), inside


def _names(ids: NDArray, vocabulary: Path) -> list[str]:
    """What ids stand for."""
    if not vocabulary.exists():
        return [f"id {each}" for each in ids.tolist()]
    with vocabulary.open("rb") as file:
        found = pq.read_table(file, columns=["id", "value"], filters=pc.field("id").isin(ids.tolist()))
    values = dict(zip(*found.to_pydict().values(), strict=True))
    return [values.get(each, "missing or unknown") for each in ids.tolist()]
