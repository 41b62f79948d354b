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

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.layout import DEFAULT_FRACTIONS, Fractions
from cetnet.trainer.prepare.sources.drawn import DAYS, START, Columns, Drawn, long_tail, write_log

HISTORY_LENGTH = 20
MAX_TAGS = 4
INTERESTS = 3  # categories a user is interested in at a time
INTEREST_DAYS = 4.0  # after which a user's interests are drawn anew
EVENTS_PER_DAY = 4.0
INTEREST_SHARE_OF_EVENTS, INTEREST_SHARE_OF_SHOWN = 0.85, 0.5
ITEM_DIM = 8
SHARPNESS, DECAY = 3.0, 0.15  # of the attention: softmax(SHARPNESS * cosine - DECAY * events since)

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


@lru_cache(maxsize=2)
def _item_vectors(world: World) -> np.ndarray:
    """Unit vectors [items + 1, ITEM_DIM]: mostly the category's, partly the item's own."""
    item, axis = np.arange(world.items + 1)[:, None], np.arange(ITEM_DIM)
    vectors = 0.8 * world.normal("category vector", world.category_of(item), axis)
    vectors += 0.6 * world.normal("item vector", item, axis)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


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

    Columns: those of all logs (see `drawn`); categorical `user`, `item`, `category` (of the item) and
    FIELD_SIZES; multi-valued `tags`; sequences `history` (last items met, in the table of `item`) and,
    aligned with it, `history_category` (table of `category`); dense `price`, `relevance` (about standard
    normal). Splits by time.

    Memory: two chunks of CHUNK_ROWS rows a worker, and the vectors of `items`, whatever `rows`. Raises
    UserError for impossible sizes or fractions and for an existing `out`.
    """
    if rows < 1_000 or workers < 1 or users < 1 or not 1 <= categories <= items:
        raise UserError(
            f"cannot draw {rows} rows of {users} users and {items} items in {categories} categories with "
            f"{workers} workers: at least 1000 --rows, one of each other, no more categories than items"
        )
    world = World(seed, rows, users, items, categories)
    features = (
        *(Feature(name=name, kind="categorical") for name in world.sizes if name != "tags"),
        Feature(name="tags", kind="multi_valued"),
        Feature(name="history", kind="sequence", table="item", max_length=HISTORY_LENGTH),
        Feature(name="history_category", kind="sequence", table="category", max_length=HISTORY_LENGTH),
        Feature(name="price", kind="dense"),
        Feature(name="relevance", kind="dense"),
    )
    card = Card(
        title="Synthetic click log",
        source="drawn from a known model (trainer/prepare/sources/synthetic.py)",
        command=command
        or f"prepare_synthetic(out={str(out)!r}, rows={rows}, seed={seed}, users={users}, "
        f"items={items}, categories={categories}, fractions={fractions})",
        notes=(
            f"Rows are independent given user, item and time; interests change every {INTEREST_DAYS:g} days.",
        ),
    )
    return write_log(out, world, features, card, fractions, workers, overwrite)
