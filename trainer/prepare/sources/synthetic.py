"""A click log drawn from a known model: feature crosses of orders 2, 3 and 4, and drifting interests.

The log-odds of a click are

    bias + order_1 + order_2 + order_3 + order_4 + sequence + dense

- order_n: products of latent numbers of n categorical fields, one number an id and cross (see CROSSES);
- sequence: attention of the shown item over the reader's last events, the recent ones weighing more;
- dense: a line in price, a parabola in relevance.

Each term is scaled to the standard deviation in TERM_SCALES and `bias` to POSITIVE_RATE, on a pilot
sample. Every number is a hash of (seed, what it is, ids): the log has no state, so any row can be drawn
anywhere, and the result does not depend on the number of workers.
"""

import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from hashlib import blake2b
from math import gcd
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import polars as pl
import pyarrow as pa

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.data.hashing import mix64
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.layout import (
    DEFAULT_FRACTIONS,
    SPLITS,
    Fractions,
    check_fractions,
    staging,
    write_dataset,
)

# Ids are int64, numbers float64, one per row; ids of lists are [rows, longest], padded with 0.
Columns = dict[str, np.ndarray]

CHUNK_ROWS = 32_768
PILOT_ROWS = 65_536
START, DAYS = 1_700_000_000, 14  # the log's first second and its span, whatever the number of rows
HISTORY_LENGTH = 20
MAX_TAGS = 4
INTERESTS = 3  # categories a user is interested in at a time
INTEREST_DAYS = 4.0  # after which a user's interests are drawn anew
EVENTS_PER_DAY = 4.0
INTEREST_SHARE_OF_EVENTS, INTEREST_SHARE_OF_SHOWN = 0.85, 0.5
ITEM_DIM = 8
SHARPNESS, DECAY = 3.0, 0.15  # of the attention: softmax(SHARPNESS * cosine - DECAY * events since)
POSITIVE_RATE = 0.2

# The sizes of user, item and category are arguments.
FIELD_SIZES = {"country": 20, "age": 8, "device": 4, "site": 50, "slot": 4, "hour": 24, "tags": 20}
CROSSES: dict[str, tuple[tuple[str, ...], ...]] = {
    "order_1": (("user",), ("item",), ("category",), ("site",), ("hour",), ("tags",)),
    "order_2": (("category", "age"), ("site", "country"), ("tags", "category"), ("device", "hour")),
    "order_3": (("country", "age", "slot"), ("category", "device", "slot")),
    "order_4": (("age", "device", "slot", "country"),),
}
TERM_SCALES = {
    "order_1": 0.5,
    "order_2": 0.6,
    "order_3": 0.6,
    "order_4": 0.6,
    "sequence": 0.8,
    "dense": 0.5,
}


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
        pilot = replace(self, rows=PILOT_ROWS)
        terms = pilot.scaled_terms(pilot.draw(np.arange(PILOT_ROWS)))
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


@dataclass(frozen=True)
class World(Drawn):
    """The known model: a pure function of its fields."""

    term_scales: ClassVar = TERM_SCALES

    users: int
    items: int
    categories: int

    @property
    def sizes(self) -> dict[str, int]:  # noqa: D102
        return {"user": self.users, "item": self.items, "category": self.categories} | FIELD_SIZES

    # ------------------------------------------------------------------------------- who meets which item

    def category_of(self, item: np.ndarray) -> np.ndarray:
        """Category (1 to categories) of item ids; 0 of padding."""
        return np.where(item == 0, 0, 1 + (item - 1) % self.categories)

    def item_in(self, category: np.ndarray, u: np.ndarray) -> np.ndarray:
        """An item of the category: popularity is long-tailed, and the id says nothing of it."""
        members = 1 + (self.items - category) // self.categories
        shift = (self.uniform("most popular", category) * members).astype(np.int64)
        position = (long_tail(u, members) + shift) % members
        return category + self.categories * position

    def interest(self, user: np.ndarray, day: np.ndarray, u: np.ndarray) -> np.ndarray:
        """One of the user's INTERESTS categories on that day."""
        epoch = np.floor(day / INTEREST_DAYS + self.uniform("phase", user)).astype(np.int64)
        return self.choice("interest", self.categories, user, epoch, (u * INTERESTS).astype(np.int64))

    def item_for(
        self, name: str, interest_share: float, user: np.ndarray, day: np.ndarray, *keys: np.ndarray
    ) -> np.ndarray:
        """An item the user meets: with probability `interest_share` of an interest, else of any category."""
        anything = 1 + long_tail(self.uniform(f"{name} category", *keys), self.categories)
        wanted = self.interest(user, day, self.uniform(f"{name} interest", *keys))
        category = np.where(self.uniform(f"{name} wanted", *keys) < interest_share, wanted, anything)
        return self.item_in(category, self.uniform(f"{name} item", *keys))

    def histories(self, user: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Items of each user's last events before `day` [rows, HISTORY_LENGTH]: oldest first, padding first.

        The time and the item of event k of a user depend on (user, k) alone, so a later history continues
        an earlier one. Lengths start from 0: users join before and during the log.
        """
        last = np.floor(self._events_per_day(user) * day).astype(np.int64)
        joined = DAYS * (1.2 * self.uniform("joined", user) - 1)  # between day -14 and day 2.8
        first = np.floor(self._events_per_day(user) * joined).astype(np.int64)
        length = np.clip(last - first, 0, HISTORY_LENGTH)
        event = last[:, None] - np.arange(HISTORY_LENGTH, 0, -1)
        # rows of one user share most of their events: draw each event once
        offset = np.int64(2**31)
        packed, inverse = np.unique((user[:, None] << 32) + (event + offset), return_inverse=True)
        reader, number = packed >> 32, (packed & (2**32 - 1)) - offset
        when = number / self._events_per_day(reader)
        items = self.item_for("event", INTEREST_SHARE_OF_EVENTS, reader, when, reader, number)
        kept = np.arange(HISTORY_LENGTH) >= HISTORY_LENGTH - length[:, None]
        return np.where(kept, items[inverse].reshape(event.shape), 0)

    def _events_per_day(self, user: np.ndarray) -> np.ndarray:
        return EVENTS_PER_DAY * (0.5 + self.uniform("events per day", user))

    def draw(self, row: np.ndarray) -> Columns:  # noqa: D102
        timestamp = START + row * (DAYS * 86_400) // self.rows
        day = (timestamp - START) / 86_400
        user = 1 + (self.users * self.uniform("user", row) ** 1.5).astype(np.int64)
        item = self.item_for("shown", INTEREST_SHARE_OF_SHOWN, user, day, row)
        own_device = self.uniform("uses own device", row) < 0.7
        slot_of_tag = np.arange(MAX_TAGS)
        tags = self.choice("tag", FIELD_SIZES["tags"], row[:, None], slot_of_tag)
        num_tags = np.floor(self.uniform("number of tags", row) * (MAX_TAGS + 1))
        history = self.histories(user, day)
        return {
            "user": user,
            "item": item,
            "category": self.category_of(item),
            "country": 1 + long_tail(self.uniform("country", user), FIELD_SIZES["country"]),
            "age": self.choice("age", FIELD_SIZES["age"], user),
            "device": np.where(
                own_device,
                self.choice("own device", FIELD_SIZES["device"], user),
                self.choice("device", FIELD_SIZES["device"], row),
            ),
            "site": 1 + long_tail(self.uniform("site", row), FIELD_SIZES["site"]),
            "slot": self.choice("slot", FIELD_SIZES["slot"], row),
            "hour": 1 + timestamp // 3600 % 24,
            "tags": np.where(slot_of_tag < num_tags[:, None], tags, 0),
            "history": history,
            "history_category": self.category_of(history),
            "price": 0.8 * self.normal("price", item) + 0.6 * self.normal("discount", row),
            "relevance": self.normal("relevance", row),
            "timestamp": timestamp,
        }

    # ------------------------------------------------------------------------------------------ the model

    def attention(self, item: np.ndarray, history: np.ndarray) -> np.ndarray:
        """Mean cosine of the shown item with the history under softmax weights; 0 for no history."""
        vectors = _item_vectors(self)
        cosine = np.einsum("rk,rhk->rh", vectors[item], vectors[history])
        events_since = np.arange(HISTORY_LENGTH - 1, -1, -1)
        weights = np.where(history > 0, np.exp(SHARPNESS * cosine - DECAY * events_since), 0)
        return (weights * cosine).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)

    def terms(self, columns: Columns) -> list[np.ndarray]:  # noqa: D102
        return [
            *(self.cross_term(crosses, columns) for crosses in CROSSES.values()),
            self.attention(columns["item"], columns["history"]),
            -columns["price"] - 0.7 * columns["relevance"] ** 2,
        ]


# Cached per process by the world's fields: what is sent to a worker stays small.


@lru_cache(maxsize=512)
def _latents(world: Drawn, cross: tuple[str, ...], name: str) -> np.ndarray:
    """Numbers of the ids of a field, 0 for id 0: mean 0 and variance 1 over the ids, mostly within 1.7.

    So, on independent uniform fields, a product says nothing about any subset of its fields.
    """
    ids = np.arange(1, world.sizes[name] + 1)
    numbers = world.uniform(f"{cross} {name}", ids)
    return np.concatenate([[0.0], (numbers - numbers.mean()) / max(numbers.std(), 1e-9)])


@lru_cache(maxsize=2)
def _item_vectors(world: World) -> np.ndarray:
    """Unit vectors [items + 1, ITEM_DIM]: mostly the category's, partly the item's own."""
    item, axis = np.arange(world.items + 1)[:, None], np.arange(ITEM_DIM)
    vectors = 0.8 * world.normal("category vector", world.category_of(item), axis)
    vectors += 0.6 * world.normal("item vector", item, axis)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


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
    # spawn: forking a process with polars' or arrow's threads can deadlock; Ctrl-C is the parent's to handle
    ignore_interrupts = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, get_context("spawn"), ignore_interrupts) as pool:
        flying: deque[Future[pa.Table]] = deque()
        try:
            for bound in bounds:
                if len(flying) == 2 * workers:
                    yield flying.popleft().result()
                flying.append(pool.submit(draw, *bound))
            while flying:
                yield flying.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def prepare_synthetic(
    out: Path,
    rows: int = 300_000,
    seed: int = 1,
    users: int = 3_000,
    items: int = 1_000,
    categories: int = 20,
    fractions: Fractions = DEFAULT_FRACTIONS,
    workers: int = 1,
    overwrite: bool = False,
    command: str | None = None,
) -> Schema:
    """Draw a log of `rows` rows; the bytes depend on everything but `workers` (processes).

    Columns: `label`; `user_id` (int64, the group); `timestamp` (int64, seconds, increasing over DAYS days);
    `true_probability` (float32, what the label was drawn from); categorical `user`, `item`, `category` (of
    the item) and FIELD_SIZES; multi-valued `tags`; sequences `history` (last items met, in the table of
    `item`) and, aligned with it, `history_category` (table of `category`); dense `price`, `relevance`
    (about standard normal). Splits by time.

    Memory: two chunks of CHUNK_ROWS rows a worker, and the vectors of `items`, whatever `rows`. Raises
    UserError for impossible sizes or fractions and for an existing `out`.
    """
    check_fractions(fractions)
    if rows < 1_000 or workers < 1 or users < 1 or not 1 <= categories <= items:
        raise UserError(
            f"cannot draw {rows} rows of {users} users and {items} items in {categories} categories with "
            f"{workers} workers: at least 1000 rows, one of each other, no more categories than items"
        )
    with staging(out, overwrite) as directory:
        world = World(seed, rows, users, items, categories).calibrated()
        schema = Schema(
            label="label",
            group="user_id",
            timestamp="timestamp",
            true_probability="true_probability",
            tables={name: size + 1 for name, size in world.sizes.items()},
            features=(
                *(Feature(name=name, kind="categorical") for name in world.sizes if name != "tags"),
                Feature(name="tags", kind="multi_valued"),
                Feature(name="history", kind="sequence", table="item", max_length=HISTORY_LENGTH),
                Feature(
                    name="history_category", kind="sequence", table="category", max_length=HISTORY_LENGTH
                ),
                Feature(name="price", kind="dense"),
                Feature(name="relevance", kind="dense"),
            ),
        )
        shares = ", ".join(f"{fraction:.0%}" for fraction in fractions)
        scales = ", ".join(f"{name} {scale}" for name, scale in TERM_SCALES.items())
        return write_dataset(
            directory,
            schema,
            draw_in_order(partial(draw_chunk, world), rows, fractions, workers),
            Card(
                title="Synthetic click log",
                source="drawn from a known model (trainer/prepare/sources/synthetic.py)",
                split_rule=f"by time, which is the order of the rows: {shares} of them",
                command=command
                or f"prepare_synthetic(out={str(out)!r}, rows={rows}, seed={seed}, users={users}, "
                f"items={items}, categories={categories}, fractions={fractions})",
                seed=seed,
                notes=(
                    f"Standard deviations of the terms of the log-odds: {scales}.",
                    "The ids are the model's own: no vocabulary is built and id 0 does not occur.",
                    f"Rows are independent given user, item and time; interests change every "
                    f"{INTEREST_DAYS:g} days.",
                ),
            ),
            total_rows=rows,
        )
