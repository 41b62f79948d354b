"""Click logs drawn from known models: what such logs share, whatever their fields.

Every number is a hash of (seed, what it is, ids): a log has no state, so any row can be drawn anywhere, and the
result does not depend on the number of workers. Columns of all of them: `label`; `user_id` (int64, the group);
`timestamp` (int64, seconds, increasing over DAYS days); `true_probability` (float32, what the label was drawn from).
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from hashlib import blake2b
from math import gcd
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import polars as pl
import pyarrow as pa

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.encoder.hashing import mix64
from cetnet.trainer.metrics import binary_entropy, cross_entropy
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.layout import SPLITS, Fractions, check_fractions, staging, write_dataset
from cetnet.trainer.prepare.engine.tasks import Resources, executor

# Ids are int64, numbers float64, one per row; ids of lists are [rows, longest], padded with 0.
Columns = dict[str, np.ndarray]

CHUNK_ROWS = 32_768
PILOT_ROWS, PILOT_DRAWS = 65_536, 32
START, DAYS = 1_700_000_000, 14  # the log's first second and its span, whatever the number of rows
POSITIVE_RATE = 0.2


@cache
def _name_key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")


@dataclass(frozen=True)
class Drawn(ABC):
    """A log of `rows` rows and the model it is drawn from; cheap to send to a process.

    Every number is a hash of `seed`, what it is, and ids. `means`, `scales` and `bias` are set by `calibrated`.
    """

    term_scales: ClassVar[Mapping[str, float]]
    """Standard deviation of each term of the log-odds."""
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Terms whose worth the card tells together, too, by what they are called there."""

    seed: int
    rows: int
    means: tuple[float, ...] = field(default=(0.0,), kw_only=True)
    scales: tuple[float, ...] = field(default=(1.0,), kw_only=True)
    bias: float = field(default=0.0, kw_only=True)

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Ids of each table: 1 to this."""

    @abstractmethod
    def draw(self, row: np.ndarray) -> Columns:
        """Everything about these rows but the click."""

    @abstractmethod
    def terms(self, columns: Columns) -> list[np.ndarray]:
        """The terms of the log-odds before they are scaled, in the order of `term_scales`, each [rows]."""

    def scaled_terms(self, columns: Columns) -> np.ndarray:
        """The terms as they enter the log-odds, [rows, terms]."""
        return (np.stack(self.terms(columns), axis=1) - np.array(self.means)) * np.array(self.scales)

    def probability(self, scaled_terms: np.ndarray) -> np.ndarray:
        """Click probability of rows with these scaled terms."""
        return 1 / (1 + np.exp(-(self.bias + scaled_terms.sum(axis=1))))

    def calibrated(self) -> Self:
        """With the scales of `term_scales` and the mean rate of POSITIVE_RATE, measured on a pilot sample."""
        terms = self.pilot_terms()
        scales = np.array(list(self.term_scales.values())) / terms.std(axis=0)
        log_odds = ((terms - terms.mean(axis=0)) * scales).sum(axis=1)
        low, high = -20.0, 20.0
        for _ in range(50):  # bisection: the mean rate rises with the bias
            middle = (low + high) / 2
            too_low = (1 / (1 + np.exp(-(middle + log_odds)))).mean() < POSITIVE_RATE
            low, high = (middle, high) if too_low else (low, middle)
        return replace(
            self, means=tuple(terms.mean(axis=0).tolist()), scales=tuple(scales.tolist()), bias=low
        )

    def worths(self) -> dict[str, float]:
        """NE that the best predictor loses without each term, and without each of `groups`; after `calibrated`.

        Measured on a pilot sample, in expectation of the click. Without a term the best prediction is the mean
        probability over what the term may be; terms are taken as independent of each other.
        """
        terms = self.pilot_terms()
        truth = self.probability(terms)
        known = cross_entropy(truth, truth).mean()
        worths = {}
        for name, members in {**{term: (term,) for term in self.term_scales}, **self.groups}.items():
            part = terms[:, [term in members for term in self.term_scales]].sum(axis=1)
            rest = terms.sum(axis=1) - part
            others = [np.roll(part, 1 + i * PILOT_ROWS // PILOT_DRAWS) for i in range(PILOT_DRAWS)]
            without = np.mean([self.probability((rest + other)[:, None]) for other in others], axis=0)
            loss = cross_entropy(truth, without).mean() - known
            worths[name] = float(loss / binary_entropy(truth.mean()))
        return worths

    def pilot_terms(self) -> np.ndarray:
        """`scaled_terms` of PILOT_ROWS rows over the whole span."""
        pilot = replace(self, rows=PILOT_ROWS)
        return pilot.scaled_terms(pilot.draw(np.arange(PILOT_ROWS)))

    def uniform(self, name: str, *keys: np.ndarray | int) -> np.ndarray:
        """Uniform in [0, 1): a hash of the seed, what the number is for, and integer keys (broadcast)."""
        state = mix64(np.array(self.seed % 2**64, np.uint64) ^ mix64(np.array(_name_key(name), np.uint64)))
        for key in keys:
            state = mix64(state ^ np.asarray(key, np.int64).view(np.uint64))
        return (state >> np.uint64(11)) * 2.0**-53

    def normal(self, name: str, *keys: np.ndarray | int) -> np.ndarray:
        """Standard normal, by Box and Muller."""
        radius = np.sqrt(-2 * np.log1p(-self.uniform(f"{name} radius", *keys)))
        return radius * np.cos(2 * np.pi * self.uniform(f"{name} angle", *keys))

    def choice(self, name: str, size: int, *keys: np.ndarray | int) -> np.ndarray:
        """Uniform over the ids 1 to `size`."""
        return 1 + (self.uniform(name, *keys) * size).astype(np.int64)

    def latent(self, cross: tuple[str, ...], name: str, ids: np.ndarray) -> np.ndarray:
        """Latent number of each id of a field in a cross; of a multi-valued field the mean over the list."""
        numbers = _latents(self, cross, name)[ids]
        if ids.ndim == 1:
            return numbers
        return numbers.sum(axis=1) / np.maximum((ids > 0).sum(axis=1), 1)

    def cross_term(self, crosses: Iterable[tuple[str, ...]], columns: Columns) -> np.ndarray:
        """Sum over crosses of the product of the fields' latent numbers."""
        products = [
            np.prod([self.latent(cross, name, columns[name]) for name in cross], axis=0) for cross in crosses
        ]
        return np.sum(products, axis=0)


# Cached per process by the log's fields: what is sent to a worker stays small.


@lru_cache(maxsize=512)
def _latents(log: Drawn, cross: tuple[str, ...], name: str) -> np.ndarray:
    """Numbers of the ids of a field, 0 for id 0: mean 0 and variance 1 over the ids, mostly within 1.7.

    So, on independent uniform fields, a product says nothing about any subset of its fields.
    """
    ids = np.arange(1, log.sizes[name] + 1)
    numbers = log.uniform(f"{cross} {name}", ids)
    return np.concatenate([[0.0], (numbers - numbers.mean()) / max(numbers.std(), 1e-9)])


def scattered(rank: np.ndarray, size: int) -> np.ndarray:
    """A bijection of [0, size) that spreads neighbouring ranks over it."""
    stride = max(1, min(int(0.618 * size), 10**9))  # a rank times this stays within 64 bits
    while gcd(stride, size) > 1:
        stride += 1
    return (rank * stride + size // 2) % size


def long_tail(u: np.ndarray, size: np.ndarray | int) -> np.ndarray:
    """Rank in [0, size) with probability about proportional to 1 / (rank + 1)."""
    rank = np.power(np.asarray(size) + 1.0, u).astype(np.int64) - 1
    return np.minimum(rank, np.asarray(size) - 1)


def draw_chunk(log: Drawn, first: int, last: int) -> pa.Table:
    """Rows [first, last): what the log draws, `user_id`, the click as `label`, `true_probability`."""
    row = np.arange(first, last)
    columns = log.draw(row)
    probability = log.probability(log.scaled_terms(columns))
    columns["user_id"] = columns["user"]
    columns["true_probability"] = probability
    columns["label"] = (log.uniform("click", row) < probability).astype(np.float32)
    return pa.table({name: _arrow(values) for name, values in columns.items()})


def _arrow(values: np.ndarray) -> pa.Array:
    """One-dimensional as it is; two-dimensional as lists without the padding."""
    if values.ndim == 1:
        return pa.array(values)
    present = values > 0
    offsets = np.concatenate([[0], present.sum(axis=1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values[present].astype(np.int32))


def draw_in_order(
    draw: Callable[[int, int], pa.Table], rows: int, fractions: Fractions, workers: int
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Rows 0 to `rows` as `write_dataset` wants them: the first are train, the next validation, then test.

    `draw` draws rows [first, last), CHUNK_ROWS at a time, in `workers` processes, which it must be picklable for.
    """
    ends = [round(rows * share) for share in np.cumsum(fractions)]
    first = 0
    for chunk in _chunks(draw, rows, workers):
        for split, start, end in zip(SPLITS, [0, *ends], ends, strict=False):
            low, high = max(start - first, 0), min(end - first, chunk.num_rows)
            if low < high:
                yield split, pl.DataFrame(chunk.slice(low, high - low))
        first += chunk.num_rows


def _chunks(draw: Callable[[int, int], pa.Table], rows: int, workers: int) -> Iterator[pa.Table]:
    """All rows in order, from `workers` processes, with at most two chunks in flight for each."""
    bounds = [(first, min(first + CHUNK_ROWS, rows)) for first in range(0, rows, CHUNK_ROWS)]
    if workers == 1:
        yield from (draw(*bound) for bound in bounds)
        return
    with executor(Resources(workers, share=0)) as pool:
        flying: deque[Future[pa.Table]] = deque()
        for bound in bounds:
            if len(flying) == 2 * workers:
                yield flying.popleft().result()
            flying.append(pool.submit(draw, *bound))
        while flying:
            yield flying.popleft().result()


def write_log(
    out: Path,
    log: Drawn,
    features: Sequence[Feature],
    card: Card,
    fractions: Fractions,
    workers: int,
    overwrite: bool,
) -> Schema:
    """Draw a log in `workers` processes and write it, split by time, with these features.

    The card's rule of the split, and notes of what all logs have in common, are added. Memory: two chunks of
    CHUNK_ROWS rows a worker. Raises UserError for impossible fractions and for an existing `out`.
    """
    check_fractions(fractions)
    with staging(out, overwrite) as directory:
        log = log.calibrated()
        schema = Schema(
            label="label",
            group="user_id",
            timestamp="timestamp",
            true_probability="true_probability",
            tables={name: size + 1 for name, size in log.sizes.items()},
            features=tuple(features),
        )
        shares = ", ".join(f"{fraction:.0%}" for fraction in fractions)
        scales = ", ".join(f"{name} {scale}" for name, scale in log.term_scales.items())
        worths = ", ".join(f"{name} {worth:.3f}" for name, worth in log.worths().items())
        card = replace(
            card,
            split_rule=f"by time, which is the order of the rows: {shares} of them",
            seed=log.seed,
            notes=(
                f"Standard deviations of the terms of the log-odds: {scales}.",
                f"NE that the best predictor loses without: {worths}.",
                "The ids are the model's own: no vocabulary is built and id 0 does not occur.",
                *card.notes,
            ),
        )
        frames = draw_in_order(partial(draw_chunk, log), log.rows, fractions, workers)
        return write_dataset(directory, schema, frames, card, total_rows=log.rows)
