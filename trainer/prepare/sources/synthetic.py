"""A click log drawn from a known model, in which crosses of features and the order of histories matter alike.

MODEL says how, for people, too: it stands in the data card. By TERM_SCALES, what pairs and triples hold beyond sums
is worth as much NE to the best predictor as what histories hold beyond their means. Interests drift: what was
read last is not what was read on average. The fields of pairs and triples have few ids, met often: one epoch is
enough to learn them.

Every number is a hash of (seed, what it is, ids): the log has no state, so any row can be drawn anywhere, and the
result does not depend on the number of workers.
"""

from dataclasses import dataclass
from itertools import combinations
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
RECENCY, APPEAL_DIM = 0.5, 4

# The sizes of user, item and category are arguments.
FIELD_SIZES = {"country": 20, "age": 8, "device": 4, "site": 50, "slot": 4, "hour": 24, "tags": 20}
CROSSES = (
    *(("user",), ("item",), ("category",), ("site",), ("hour",), ("tags",)),
    *(("category", "age"), ("site", "country"), ("tags", "category"), ("device", "hour")),
    *(("country", "age", "slot"), ("category", "device", "slot")),
)
RANK = 2
TERM_SCALES = {
    "sums": 0.7,
    "pairs": 0.7,
    "triples": 0.5,
    "taste": 0.5,
    "order": 0.7,
    "familiar": 0.5,
    "dense": 0.4,
}
GROUPS = {"pairs and triples": ("pairs", "triples"), "order and familiar": ("order", "familiar")}
MODEL = (
    "The log-odds of a click are bias + sums + pairs + triples + taste + order + familiar + dense.",
    "sums, pairs and triples are the parts of crosses of fields. A cross of fields f, g, ... is the sum over "
    f"r = 1 to {RANK} of (1 + x_rf)(1 + x_rg)..., where x_rf is a number that the row's id in field f has in this "
    "cross: of mean 0 and variance 1 over the ids, of `tags` the mean over the list. Multiplied out, the products of "
    "one, two and three such numbers are its part in sums, pairs and triples. So pairs and triples come with effects "
    "of their members, from which a model can begin, but hold little that sums could say.",
    f"The crosses: {', '.join(' x '.join(cross) for cross in CROSSES)}.",
    "taste is the mean over the history of A[category read, category shown], A a random matrix of rank "
    f"{APPEAL_DIM}, not symmetric, whose rows and columns have mean 0; 0 without a history.",
    f"order is the sum over the history of {RECENCY}^(events since) (A[category read, category shown] - taste): the "
    "last events draw more than the others. Over all orders of the same events its mean is 0.",
    "familiar is 1 where the history holds the shown category at all. dense is -price - 0.7 relevance^2.",
)


@dataclass(frozen=True)
class World(Drawn):
    """The known model: a pure function of its fields."""

    term_scales: ClassVar = TERM_SCALES
    groups: ClassVar = GROUPS

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

    def cross_part(self, order: int, columns: Columns) -> np.ndarray:
        """The part of all crosses that is products of `order` latent numbers, one number for each row."""
        total = np.zeros(len(columns["user"]))
        for cross in CROSSES:
            for r in range(RANK):
                latents = [self.latent((*cross, str(r)), name, columns[name]) for name in cross]
                for chosen in combinations(latents, order):
                    total += np.prod(chosen, axis=0)
        return total

    def appeal(self) -> np.ndarray:
        """What having read a category (row) adds to the draw of another (column); 0 for id 0. [categories + 1] twice.

        Rows and columns have mean 0. A category draws to its like, and on to others.
        """
        category, axis = np.arange(1, self.categories + 1)[:, None], np.arange(APPEAL_DIM)
        read = self.normal("read", category, axis)
        shown = read + self.normal("shown", category, axis)
        return np.pad((read - read.mean(axis=0)) @ (shown - shown.mean(axis=0)).T, ((1, 0), (1, 0)))

    def taste_and_order(self, category: np.ndarray, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of shown categories [rows] after those read [rows, HISTORY_LENGTH]; 0 for no history."""
        appeal = self.appeal()[read, category[:, None]]
        taste = appeal.sum(axis=1) / np.maximum((read > 0).sum(axis=1), 1)
        weights = (read > 0) * RECENCY ** np.arange(HISTORY_LENGTH - 1, -1, -1)
        return taste, (weights * (appeal - taste[:, None])).sum(axis=1)

    def terms(self, columns: Columns) -> list[np.ndarray]:  # noqa: D102
        category, read = columns["category"], columns["history_category"]
        return [
            *(self.cross_part(order, columns) for order in (1, 2, 3)),
            *self.taste_and_order(category, read),
            (read == category[:, None]).any(axis=1).astype(float),
            -columns["price"] - 0.7 * columns["relevance"] ** 2,
        ]


def prepare_synthetic(
    out: Path,
    rows: int = 300_000,
    seed: int = 1,
    users: int = 2_000,
    items: int = 500,
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

    Memory: two chunks of CHUNK_ROWS rows a worker, whatever `rows`. Raises
    UserError for impossible sizes or fractions and for an existing `out`.
    """
    if rows < 1_000 or workers < 1 or users < 1 or not 2 <= categories <= items:
        raise UserError(
            f"cannot draw {rows} rows of {users} users and {items} items in {categories} categories with "
            f"{workers} workers: at least 1000 --rows, 2 categories and as many items, one of each other"
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
            *MODEL,
            f"Rows are independent given user, item and time; interests change every {INTEREST_DAYS:g} days.",
        ),
    )
    return write_log(out, world, features, card, fractions, workers, overwrite)
