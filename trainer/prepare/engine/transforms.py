"""What the rows of train say of the transforms of dense features."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from cetnet.trainer.prepare.engine.tasks import read_facts
from cetnet.trainer.prepare.engine.typed import Chunk

Facts = Mapping[str, Any]


def fit_transforms(
    spec: RawSchema,
    chunks: Sequence[Chunk],
    facts: Sequence[Facts],
    counted: Sequence[Path],
    transform: str | None,
) -> tuple[RawEncoding, dict[int, float]]:
    """What turns raw rows into those of the result, by the rows of train; and the lowest value of each file.

    `transform`: name of the function that the raw columns come from, if any.
    """
    counts = [read_facts(folder) for folder in counted]
    lowest = _lowest(chunks, facts)
    with_train = {c.file for c, count in zip(chunks, counts, strict=True) if count["splits"][0]}
    encoding = RawEncoding(
        raw=spec.model_copy(update={"pretrained": {}}),
        moments={f.name: _moments(f, counts) for f in spec.features if f.transform == "standardize"},
        lowest=min((lowest[file] for file in with_train), default=None)
        if any(f.transform == "log_from_lowest" for f in spec.features)
        else None,
        forms=_forms(spec, facts),
        transform=transform,
    )
    return encoding, lowest


def _moments(feature: RawFeature, counts: Sequence[Facts]) -> tuple[float, float]:
    """Mean and standard deviation over train; 0 and 1 where they are not defined or of no use."""
    sums = [count["sums"][feature.name] for count in counts]
    rows = sum(number for number, _, _ in sums)
    if not rows:
        return 0.0, 1.0
    mean = sum((Fraction(*total) for _, total, _ in sums), Fraction(0)) / rows
    square = sum((Fraction(*total) for _, _, total in sums), Fraction(0)) / rows
    return float(mean), math.sqrt(max(0, square - mean**2)) or 1.0


def _lowest(chunks: Sequence[Chunk], facts: Sequence[Facts]) -> dict[int, float]:
    """The lowest value of each file, for the transform log_from_lowest."""
    lowest: dict[int, float] = {}
    for chunk, fact in zip(chunks, facts, strict=True):
        lowest[chunk.file] = min(fact["lowest"], lowest.get(chunk.file, math.inf))
    return lowest


def _forms(spec: RawSchema, facts: Sequence[Facts]) -> dict[str, tuple[str, ...]]:
    """The `forms` of the ids of hashed tables."""
    found: dict[str, set[str]] = {}
    for feature in spec.features:
        if feature.hash is not None:
            table = feature.table or feature.name
            of_feature = (fact["forms"][table][feature.raw] for fact in facts)
            found.setdefault(table, set()).update(*of_feature)
    return {table: tuple(sorted(of_table)) for table, of_table in sorted(found.items()) if of_table}
