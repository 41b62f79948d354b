"""Random rows in any schema, for smoke runs and for trying a schema before its data exists.

    log-odds = BIAS + EFFECTS * effects + MATCHES * matches

with both terms scaled to mean 0 and variance 1: `effects` adds up a number for each id (the mean over a list)
and the dense values; `matches` counts the sequences that hold the shown id of their table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import polars as pl

from cetnet.models.schema import Schema
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.layout import (
    DEFAULT_FRACTIONS,
    SPLITS,
    hashed_uniform,
    list_column,
    staging,
    write_dataset,
)
from cetnet.trainer.prepare.sources.drawn import START, long_tail, scattered

CHUNK_ROWS = 16_384
BIAS, EFFECTS, MATCHES = -1.0, 1.0, 0.7
EMPTY_SHARE = 0.05  # of the lists, at least
MATCH_SHARE = 0.3  # of the rows show something out of each list of events
ROWS_PER_GROUP = 10


class Lists(NamedTuple):
    """A list for each row: the ids of all of them, one after the other, and the lengths [rows]."""

    ids: np.ndarray
    lengths: np.ndarray

    def any(self, of_ids: np.ndarray) -> np.ndarray:
        """Whether it holds for an id of the row, [rows]."""
        return np.bincount(self._row[of_ids], minlength=len(self.lengths)) > 0

    def mean(self, of_ids: np.ndarray) -> np.ndarray:
        """Mean over the ids of the row, 0 for none, [rows]."""
        return np.bincount(self._row, of_ids, len(self.lengths)) / np.maximum(self.lengths, 1)

    def each(self, of_rows: np.ndarray) -> np.ndarray:
        """The number of its row for each id."""
        return np.repeat(of_rows, self.lengths)

    @property
    def _row(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


@dataclass(frozen=True)
class World:
    """The law that rows of a schema are drawn from."""

    schema: Schema
    seed: int

    @property
    def shown(self) -> dict[str | None, str]:
        """The categorical feature of each table that has one: the first."""
        return {feature.table: feature.name for feature in reversed(self.schema.of_kind("categorical"))}

    def ids(self, table: str, rng: np.random.Generator, count: int) -> np.ndarray:
        """Long-tailed ids over the whole table, the frequent ones spread over it."""
        size = self.schema.tables[table]
        return scattered(long_tail(rng.random(count), size), size)

    def effect(self, table: str, ids: np.ndarray) -> np.ndarray:
        """What each id adds to the log-odds: mean 0 and variance 1 over the ids of the table."""
        return (hashed_uniform(ids, (self.seed << 32) + crc32(table.encode())) - 0.5) * 12**0.5

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[dict[str, np.ndarray], dict[str, Lists]]:
        """The features of some rows: numbers and ids, and lists."""
        scalars: dict[str, np.ndarray] = {}
        lists: dict[str, Lists] = {}
        for feature in self.schema.features:
            if feature.kind == "dense":
                scalars[feature.name] = rng.standard_normal(rows)
            elif feature.kind == "categorical":
                scalars[feature.name] = self.ids(str(feature.table), rng, rows)
            elif feature.kind == "multi_valued":
                lengths = _lengths(rng, rows, feature.mean_length)
                lists[feature.name] = Lists(self.ids(str(feature.table), rng, lengths.sum()), lengths)
        sequences = self.schema.of_kind("sequence")
        for behavior in dict.fromkeys(feature.behavior for feature in sequences):
            members = [feature for feature in sequences if feature.behavior == behavior]
            mean = sum(feature.mean_length for feature in members) / len(members)
            longest = min(feature.max_length for feature in members if feature.max_length)
            lengths = _lengths(rng, rows, mean, longest)
            again = np.flatnonzero((rng.random(rows) < MATCH_SHARE) & (lengths > 0))
            first = lengths.cumsum() - lengths
            event = (first + (rng.random(rows) * lengths).astype(np.int64))[again]
            for feature in members:
                ids = self.ids(str(feature.table), rng, lengths.sum())
                lists[feature.name] = Lists(ids, lengths)
                if feature.table in self.shown:
                    scalars[self.shown[feature.table]][again] = ids[event]
        return scalars, lists

    def terms(self, scalars: Mapping[str, np.ndarray], lists: Mapping[str, Lists]) -> np.ndarray:
        """Effects and matches of rows, [2, rows]."""
        effects: list[np.ndarray] = []
        matches: list[np.ndarray] = []
        for feature in self.schema.features:
            if feature.table is None:
                effects.append(scalars[feature.name])
            elif feature.kind == "categorical":
                effects.append(self.effect(feature.table, scalars[feature.name]))
            else:
                column = lists[feature.name]
                effects.append(column.mean(self.effect(feature.table, column.ids)))
                if feature.kind == "sequence" and feature.table in self.shown:
                    shown = scalars[self.shown[feature.table]]
                    matches.append(column.any(column.ids == column.each(shown)))
        nothing = np.zeros_like(effects[0])
        return np.stack([sum(effects, nothing), sum(matches, nothing)])


def _lengths(rng: np.random.Generator, rows: int, mean: float, longest: float = inf) -> np.ndarray:
    """Lengths of lists, spread evenly around `mean` and rounded at random; EMPTY_SHARE of them 0."""
    mean = min(mean / (1 - EMPTY_SHARE), longest)
    lengths = np.floor(
        rng.uniform(max(0, 2 * mean - longest), min(longest, 2 * mean), rows) + rng.random(rows)
    )
    return np.where(rng.random(rows) < EMPTY_SHARE, 0, np.minimum(lengths, longest)).astype(np.int64)


def prepare_random(
    schema_path: Path,
    rows: int,
    out: Path,
    max_table_rows: int | None = None,
    overwrite: bool = False,
    seed: int = 1,
    command: str | None = None,
) -> Schema:
    """Draw `rows` rows of the schema in file `schema_path`, with tables of at most `max_table_rows` rows.

    Ids are long-tailed over all ids of their table. Lists have about their `mean_length`, sequences of one
    behavior the same length; in MATCH_SHARE of the rows the shown item is out of the list. Dense values are
    standard normal. A timestamp is one second a row, so the splits, the first 80 % of the rows, 10 % and
    10 %, are by time; groups have about ROWS_PER_GROUP rows; weights are uniform in [0.5, 1.5). Of vectors in
    `pretrained/<table>.npy` the first number is the id's effect, the others are standard normal.

    Memory: CHUNK_ROWS rows. Raises UserError for a bad schema, too few rows and an existing `out`.
    """
    schema = read_schema(schema_path).model_copy(update={"vocabularies": None, "encoding": None})
    if rows < 10:
        raise UserError(f"cannot split {rows} rows: give at least 10 --rows")
    if max_table_rows is not None:
        tables = {name: min(size, max_table_rows) for name, size in schema.tables.items()}
        schema = schema.model_copy(update={"tables": tables})
    with staging(out, overwrite) as directory:
        rng = np.random.default_rng(seed % 2**64)
        world = World(schema, seed)
        _write_pretrained(directory / "pretrained", world, rng)
        ends = [round(rows * share) for share in np.cumsum(DEFAULT_FRACTIONS)]

        def frames() -> Iterator[tuple[str, pl.DataFrame]]:
            mean = scale = np.zeros((2, 1))
            for split, start, end in zip(SPLITS, [0, *ends], ends, strict=False):
                for first in range(start, end, CHUNK_ROWS):
                    row = np.arange(first, min(first + CHUNK_ROWS, end))
                    scalars, lists = world.draw(rng, len(row))
                    terms = world.terms(scalars, lists)
                    if first == 0:
                        mean, deviation = terms.mean(axis=1, keepdims=True), terms.std(axis=1, keepdims=True)
                        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
                    log_odds = BIAS + np.array([EFFECTS, MATCHES]) @ ((terms - mean) * scale)
                    probability = 1 / (1 + np.exp(-log_odds))
                    roles = {
                        schema.label: (rng.random(len(row)) < probability).astype(np.int8),
                        schema.group: rng.integers(max(1, rows // ROWS_PER_GROUP), size=len(row)),
                        schema.timestamp: START + row,
                        schema.weight: rng.uniform(0.5, 1.5, len(row)),
                        schema.true_probability: probability,
                    }
                    features = [pl.Series(name, values) for name, values in scalars.items()]
                    features += [list_column(*column).alias(name) for name, column in lists.items()]
                    frame = pl.DataFrame({name: values for name, values in roles.items() if name})
                    yield split, frame.with_columns(features)

        return write_dataset(
            directory,
            schema,
            frames(),
            Card(
                title="Random rows",
                source=f"drawn for the schema {schema_path} (trainer/prepare/sources/random.py)",
                split_rule="in the order of the rows, which are independent: 80%, 10%, 10%",
                command=command
                or f"prepare_random(schema_path={str(schema_path)!r}, rows={rows}, out={str(out)!r}, "
                f"max_table_rows={max_table_rows}, seed={seed})",
                seed=seed,
                notes=("For smoke runs: it tells nothing of how good a model is.",),
            ),
            total_rows=rows,
        )


def _write_pretrained(directory: Path, world: World, rng: np.random.Generator) -> None:
    for table, size in world.schema.pretrained.items():
        directory.mkdir(exist_ok=True)
        shape = (world.schema.tables[table], size)
        vectors = np.lib.format.open_memmap(directory / f"{table}.npy", "w+", np.float32, shape)
        for start in range(0, shape[0], CHUNK_ROWS):
            block = vectors[start : start + CHUNK_ROWS]
            block[:] = rng.standard_normal(block.shape, np.float32)
            block[:, 0] = world.effect(table, np.arange(start, start + len(block)))
        vectors.flush()
