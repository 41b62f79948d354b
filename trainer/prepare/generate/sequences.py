"""The re-packed sets with histories: AmazonElectronics_x1, TaobaoAd_x1, KuaiVideo_x1.

People meet items of a few categories they are interested in; what is shown is clicked rather where its category is
in the history. Event `k` of a person depends on (person, k) alone, so a later history continues an earlier one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from cetnet.trainer.prepare.generate.draw import (
    CHUNK_ROWS,
    Law,
    by_shares,
    joined,
    shuffled,
    standardized,
    write_files,
)

INTERESTS = 3
INTEREST_SHARE = 0.8  # of the events are of an interest
AMAZON_ITEMS, AMAZON_CATEGORIES, AMAZON_USERS_PER_ROW = 63_001, 801, 1 / 15.3
KUAI_USERS, KUAI_CATEGORIES, KUAI_HISTORY, KUAI_VECTOR = 10_000, 400, 100, 64
KUAI_ITEMS_PER_ROW = 0.237  # 3,242,315 of 13,661,383 rows
TAOBAO_USERS, TAOBAO_ADS, TAOBAO_HISTORY = 1_061_768, 846_811, 50
TAOBAO_CATEGORIES, TAOBAO_BRANDS = 12_977, 461_497
TAOBAO_PROFILE = {  # of a user: the number of values, and the share of missing ones, written 0
    "cms_segid": (97, 0.0), "cms_group_id": (13, 0.0), "final_gender_code": (2, 0.0), "age_level": (7, 0.0),
    "pvalue_level": (3, 0.54), "shopping_level": (3, 0.0), "occupation": (2, 0.0),
    "new_user_class_level": (4, 0.32),
}  # fmt: skip


def _event_keys(person: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Persons and numbers of the events `first` to `first + length - 1` of each row, one after the other."""
    ends = lengths.cumsum()
    number = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths - first, lengths)
    return np.repeat(person, lengths), number


def _wanted(
    law: Law, name: str, categories: int, person: np.ndarray, number: np.ndarray, share: float
) -> np.ndarray:
    """The category of an event of a person: with probability `share` of an interest of theirs."""
    key = (person << 24) + number
    which = (law.uniform(f"{name} interest", key) * INTERESTS).astype(np.int64)
    interest = law.rank("interest", categories, person * INTERESTS + which)
    anything = law.rank(f"{name} category", categories, key)
    return np.where(law.uniform(f"{name} wanted", key) < share, interest, anything)


def _item(
    law: Law, name: str, items: int, categories: int, person: np.ndarray, number: np.ndarray
) -> np.ndarray:
    """The item of an event; its category is the remainder by `categories`."""
    category = _wanted(law, name, categories, person, number, INTEREST_SHARE)
    members = (items - category - 1) // categories + 1
    u = law.uniform(f"{name} item", (person << 24) + number)
    return category + categories * np.minimum((members + 1.0) ** u - 1, members - 1).astype(np.int64)


@dataclass(frozen=True)
class _Reviews:
    """Who reviewed how many items (>= 5), and where their rows begin."""

    law: Law
    users: int

    @property
    def lengths(self) -> np.ndarray:
        u = self.law.uniform("reviews", np.arange(self.users))
        return 5 + (2.9 * (-np.log1p(-u)) ** 1.6).astype(np.int64)


def _amazon(reviews: _Reviews, ends: np.ndarray, row: np.ndarray) -> pl.DataFrame:
    """Positions 1 to n - 2 of each user are train rows, a positive and a negative each; n - 1 are test rows."""
    law, train_pairs = reviews.law, int(ends[-1])
    in_train = bool(row[0] < 2 * train_pairs)
    if in_train:
        drawn = shuffled(row, 2 * train_pairs)
        pair, negative = drawn // 2, drawn % 2 == 1
        user = np.searchsorted(ends, pair, side="right")
        position = 1 + pair - np.concatenate([[0], ends])[user]
    else:
        pair, negative = (row - 2 * train_pairs) // 2, row % 2 == 1  # the negative follows its positive
        user = shuffled(pair, reviews.users)
        position = reviews.lengths[user] - 1
    shown = _item(law, "review", AMAZON_ITEMS, AMAZON_CATEGORIES, user, position)
    other = (law.uniform("negative", (user << 24) + position) * AMAZON_ITEMS).astype(np.int64)
    item = np.where(negative, other, shown)
    person, number = _event_keys(user, np.zeros_like(position), position)
    events = _item(law, "review", AMAZON_ITEMS, AMAZON_CATEGORIES, person, number)
    columns = {
        "label": pl.Series((~negative).astype(np.int8)),
        "user_id": pl.Series(shuffled(user, reviews.users)),
        "item_id": pl.Series(item),
        "cate_id": pl.Series(item % AMAZON_CATEGORIES),
        "item_history": joined(events, position, "^"),
        "cate_history": joined(events % AMAZON_CATEGORIES, position, "^"),
    }
    return pl.DataFrame(columns)


def generate_amazon_electronics_x1(out: Path, rows: int, seed: int = 1) -> None:
    """`train.csv` and `test.csv`: about `rows` rows together, all those of whole users."""
    reviews = _Reviews(Law(seed), max(3, round(rows * AMAZON_USERS_PER_ROW)))
    ends = (reviews.lengths - 2).cumsum()
    files = {"train.csv": 2 * int(ends[-1]), "test.csv": 2 * reviews.users}
    write_files(out, files, partial(_amazon, reviews, ends))


def _taobao_events(law: Law, row: np.ndarray) -> Mapping[str, np.ndarray]:
    """The shown ad, and the user's last events before it."""
    user = law.rank("userid", TAOBAO_USERS, row)
    ad = law.rank("adgroup_id", TAOBAO_ADS, row)
    category = _wanted(law, "ad", TAOBAO_CATEGORIES, user, row % 2**24, 0.3)
    length = np.minimum((law.uniform("events", row) * 1.6 * TAOBAO_HISTORY).astype(np.int64), TAOBAO_HISTORY)
    first = (law.uniform("first event", row) * 30).astype(np.int64)
    person, number = _event_keys(user, first, length)
    event_category = _wanted(law, "event", TAOBAO_CATEGORIES, person, number, INTEREST_SHARE)
    seen = event_category == np.repeat(category, length)
    matches = np.bincount(np.repeat(np.arange(len(row)), length), seen, len(row)) > 0
    return {
        "user": user, "ad": ad, "category": category, "length": length, "person": person, "number": number,
        "event_category": event_category, "matches": matches,
    }  # fmt: skip


def _taobao_effects(law: Law, row: np.ndarray) -> np.ndarray:
    events = _taobao_events(law, row)
    return (
        law.effect("category", events["category"]) + law.effect("ad", events["ad"] % 5000) + events["matches"]
    )


def _taobao(law: Law, row: np.ndarray) -> pl.DataFrame:
    events = _taobao_events(law, row)
    user, ad, length = events["user"], events["ad"], events["length"]
    key = (events["person"] << 24) + events["number"]
    # a brand that is not known is left out of brand_his, so that it may be shorter
    brands = law.rank("event brand", TAOBAO_BRANDS, key)
    known = law.uniform("event brand known", key) < 0.98
    kept = np.bincount(np.repeat(np.arange(len(row)), length)[known], minlength=len(row))
    columns = {
        "clk": law.label(-3.2 + 0.8 * standardized(partial(_taobao_effects, law), row), row),
        "btag_his": joined(1 + law.rank("event btag", 4, key), length, "^"),
        "cate_his": joined(1 + events["event_category"], length, "^"),
        "brand_his": joined(1 + brands[known], kept, "^"),
        "userid": pl.Series(1 + user),
    }
    for name, (size, missing) in TAOBAO_PROFILE.items():
        value = 1 + law.rank(name, size, user)
        columns[name] = pl.Series(np.where(law.uniform(f"{name} missing", user) < missing, 0, value))
    columns |= {
        "adgroup_id": pl.Series(1 + ad),
        "cate_id": pl.Series(1 + events["category"]),
        "campaign_id": pl.Series(1 + law.rank("campaign", 423_436, ad)),
        "customer": pl.Series(1 + law.rank("customer", 255_875, ad)),
        "brand": pl.Series(1 + law.rank("brand", TAOBAO_BRANDS, ad)),
        "price": pl.Series((5 * np.exp(8 * law.uniform("price", ad))).round(2)),
        "pid": pl.Series(1 + (law.uniform("pid", row) < 0.4).astype(np.int64)),
        "btag": pl.Series(np.ones(len(row), np.int64)),
    }
    return pl.DataFrame(columns)


def generate_taobao_ad_x1(out: Path, rows: int, seed: int = 1) -> None:
    """`train.csv` and `test.csv`, 7 parts to 1."""
    write_files(out, by_shares(rows, {"train.csv": 7, "test.csv": 1}), partial(_taobao, Law(seed)))


@dataclass(frozen=True)
class _Videos:
    """A log of `rows` rows, whose videos have numbers below `items`."""

    law: Law
    rows: int

    @property
    def items(self) -> int:
        return max(2 * KUAI_CATEGORIES, round(self.rows * KUAI_ITEMS_PER_ROW))

    def shown(self, row: np.ndarray) -> Mapping[str, np.ndarray]:
        user = self.law.rank("user", KUAI_USERS, row)
        item = _item(self.law, "shown", self.items, KUAI_CATEGORIES, user, row % 2**24)
        per_user = self.rows / np.log(KUAI_USERS + 1) / (user + 1)  # rows of this user, about
        lengths = {
            name: np.minimum((share * per_user * row / self.rows).astype(np.int64), KUAI_HISTORY)
            for name, share in (("pos", 0.25), ("neg", 0.75))
        }
        return {"user": user, "item": item} | lengths

    def effects(self, row: np.ndarray) -> np.ndarray:
        shown = self.shown(row)
        category = shown["item"] % KUAI_CATEGORIES
        taste = self.law.effect("taste", (shown["user"] << 24) + category)
        return self.law.effect("user", shown["user"]) + self.law.effect("category", category) + taste

    def draw(self, row: np.ndarray) -> pl.DataFrame:
        law, shown = self.law, self.shown(row)
        columns = {
            "timestamp": pl.Series(1_000_000 + row // 3),  # several rows a tick
            "user_id": pl.Series(shuffled(shown["user"], KUAI_USERS)),
            "item_id": pl.Series(shuffled(shown["item"], self.items)),
            "is_click": law.label(-1.4 + 1.2 * standardized(self.effects, row), row),
            "is_like": pl.Series((law.uniform("like", row) < 0.01).astype(np.int8)),
            "is_follow": pl.Series((law.uniform("follow", row) < 0.003).astype(np.int8)),
        }
        for name in ("pos", "neg"):
            person, number = _event_keys(shown["user"], np.zeros_like(row), shown[name])
            events = _item(law, name, self.items, KUAI_CATEGORIES, person, number)
            columns[f"{name}_items"] = joined(shuffled(events, self.items), shown[name], "^")
        return pl.DataFrame(columns)

    def write_vectors(self, directory: Path) -> None:
        """`visual64_select.npy`: of each video, mostly its category's."""
        path = directory / "visual64_select.npy"
        vectors = np.lib.format.open_memmap(path, "w+", np.float32, (self.items, KUAI_VECTOR))
        axis = np.arange(KUAI_VECTOR)
        for start in range(0, self.items, CHUNK_ROWS):
            item = np.arange(start, min(start + CHUNK_ROWS, self.items))
            category = 0.7 * self.law.uniform(
                "category vector", (item % KUAI_CATEGORIES)[:, None] << 8 | axis
            )
            own = 0.3 * self.law.uniform("vector", item[:, None] << 8 | axis)
            vectors[shuffled(item, self.items)] = category + own - 0.5
        vectors.flush()


def generate_kuaivideo_x1(out: Path, rows: int, seed: int = 1) -> None:
    """`train.csv` and `test.csv`, 4:1, in the order of time, and `visual64_select.npy`, the vectors of the videos.

    Histories are the oldest 100 events.
    """
    videos = _Videos(Law(seed), rows)
    files = by_shares(rows, {"train.csv": 4, "test.csv": 1})
    write_files(out, files, videos.draw, more=videos.write_vectors)
