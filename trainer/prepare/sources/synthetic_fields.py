"""A click log of a dozen long-tailed id fields, drawn from a known model of their pairs: for embedding sizes.

The log-odds of a click are

    bias + order_1 + order_2 + order_3

sums of products of latent numbers of one, two and three fields. In each pair that it enters an id has two numbers of
its own, as in a field-aware factorization machine. Each order is scaled to the standard deviation in TERM_SCALES and
`bias` to POSITIVE_RATE, on a pilot sample.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.layout import DEFAULT_FRACTIONS, Fractions
from cetnet.trainer.prepare.sources.drawn import (
    DAYS,
    START,
    Columns,
    Drawn,
    long_tail,
    scattered,
    write_log,
)

FIELD_SIZES = {
    "user": 20_000,
    "ad": 8_000,
    "site": 3_000,
    "advertiser": 1_000,
    "city": 500,
    "model": 300,
    "category": 150,
    "campaign": 80,
    "browser": 40,
    "hour": 24,
    "slot": 10,
    "age": 8,
}
OWNERS = {
    "city": "user",
    "age": "user",
    "advertiser": "ad",
    "category": "ad",
}  # fields that another one tells
PAIRS = (
    ("user", "category"),
    ("user", "hour"),
    ("ad", "site"),
    ("ad", "age"),
    ("site", "category"),
    ("site", "model"),
    ("advertiser", "city"),
    ("advertiser", "slot"),
    ("city", "category"),
    ("model", "browser"),
    ("category", "age"),
    ("category", "hour"),
    ("campaign", "site"),
    ("campaign", "age"),
    ("browser", "slot"),
    ("hour", "slot"),
)
CROSSES: dict[str, tuple[tuple[str, ...], ...]] = {
    "order_1": tuple((name,) for name in FIELD_SIZES),
    "order_2": (*PAIRS, *((second, first) for first, second in PAIRS)),  # two products for each pair
    "order_3": (("category", "age", "slot"), ("browser", "hour", "slot")),
}
TERM_SCALES = {"order_1": 0.7, "order_2": 1.2, "order_3": 0.4}


@dataclass(frozen=True)
class Fields(Drawn):
    """The known model: a pure function of its fields."""

    term_scales: ClassVar = TERM_SCALES

    @property
    def sizes(self) -> dict[str, int]:  # noqa: D102
        return FIELD_SIZES

    def draw(self, row: np.ndarray) -> Columns:  # noqa: D102
        columns: Columns = {"timestamp": START + row * (DAYS * 86_400) // self.rows}
        for name, size in FIELD_SIZES.items():
            key = columns[OWNERS[name]] if name in OWNERS else row
            u = self.uniform(name, key)
            rank = (size * u**2).astype(np.int64) if name == "user" else long_tail(u, size)
            columns[name] = 1 + scattered(rank, size)
        columns["hour"] = 1 + columns["timestamp"] // 3600 % 24
        return columns

    def terms(self, columns: Columns) -> list[np.ndarray]:  # noqa: D102
        return [self.cross_term(crosses, columns) for crosses in CROSSES.values()]


def prepare_synthetic_fields(
    out: Path,
    rows: int = 1_250_000,
    seed: int = 1,
    fractions: Fractions = DEFAULT_FRACTIONS,
    workers: int = 1,
    overwrite: bool = False,
    command: str | None = None,
) -> Schema:
    """Draw a log of `rows` rows; the bytes depend on everything but `workers` (processes).

    Columns: those of all logs (see `drawn`) and the categorical fields of FIELD_SIZES. The frequency of an id
    falls as 1 / rank, of a user as 1 / sqrt(rank). Splits by time.

    Memory: two chunks a worker, whatever `rows`. Raises UserError for too few rows, impossible fractions and an
    existing `out`.
    """
    if rows < 1_000 or workers < 1:
        raise UserError(
            f"cannot draw {rows} rows with {workers} workers: at least 1000 --rows and one worker"
        )
    features = [Feature(name=name, kind="categorical") for name in FIELD_SIZES]
    card = Card(
        title="Synthetic click log of id fields",
        source="drawn from a known model (trainer/prepare/sources/synthetic_fields.py)",
        command=command
        or f"prepare_synthetic_fields(out={str(out)!r}, rows={rows}, seed={seed}, fractions={fractions})",
    )
    return write_log(out, Fields(seed, rows), features, card, fractions, workers, overwrite)
