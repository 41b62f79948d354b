"""A click log as a site of one's own has it, a file a day, drawn from a known model.

Text ids of several alphabets, numbers and lists with gaps, and days that differ: on each, one user and one item in
five (NEW_A_DAY) are new in another's place, with its popularity, and the shares of devices and countries, and
prices, move on. Everything is a hash of the seed, of what it is and of ids (`Drawn`), so a day's rows depend on
nothing but (seed, rows, days).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from cetnet.trainer.console import progress_bar
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import write_text
from cetnet.trainer.metrics import binary_entropy, cross_entropy
from cetnet.trainer.prepare.engine.layout import PartWriter, staging
from cetnet.trainer.prepare.sources.drawn import Columns, Drawn, long_tail, scattered

CHUNK_ROWS = 65_536
MIDNIGHT, DAY = 1_700_006_400, 86_400  # the first second of day 1, UTC
NEW_A_DAY = 0.2
ROWS_A_USER, ROWS_AN_ITEM, CATEGORIES = 50, 200, 16  # of a day
EVENTS_PER_DAY, HISTORY_LENGTH = 6.0, 30
INTERESTS = 2
INTEREST_SHARE_OF_EVENTS, INTEREST_SHARE_OF_SHOWN = 0.9, 0.4
MAX_TAGS, ITEM_DIM = 4, 4
NO_PRICE, NO_AGE, NO_COUNTRY, NO_TAGS = 0.08, 0.05, 0.01, 0.1

DEVICES = ("phone", "tablet", "desktop", "tv")
COUNTRIES = {  # and by how many hours their clocks are ahead of UTC
    **{"DE": 1, "FR": 1, "PL": 1, "JP": 9, "BR": -3, "IN": 5, "US": -5, "GB": 0, "ES": 1, "IT": 1},
    **{"NL": 1, "SE": 1, "MX": -6, "KR": 9, "TR": 3, "ID": 7, "NG": 1, "EG": 2, "AR": -3, "VN": 7},
}
TAGS = (  # the first are those of categories
    *("sport", "politics", "Kultur", "économie", "музыка", "игры", "映画", "料理"),
    *("旅行", "과학", "تعليم", "μόδα", "travel, cheap", 'so-called "news"', "🚲", "auto"),
    *("new", "sale", "local", "longread", "video", "quiz"),
)
# one id in eight is written in another alphabet
USERS = ("u",) * 14 + ("użytkownik-", "用户")
ITEMS = ("i",) * 14 + ("товар-", "الخبر ")

SCHEMA = """\
# Clicks that `cetnet generate clicks` drew: {summary}
# cetnet prepare {format} --raw {first} --schema clicks.yaml --split time:0.8,0.1,0.1 --out ../data/day-1
# Best possible NE, that of the column click_probability (which no model reads): {best}
label: clicked
group: user_id                # gAUC is computed within it
timestamp: ts
min_count: 2                  # rarer values become id 0
features:
  - {{name: user_id, kind: categorical}}
  - {{name: item_id, kind: categorical, table: item}}
  - {{name: device, kind: categorical}}
  - {{name: hour, kind: categorical}}   # where the user is
  - {{name: country, kind: categorical}}
  - {{name: tags, kind: multi_valued}}
  - {{name: history, kind: sequence, table: item, max_length: 20}}   # oldest first; shares the item table
  - {{name: price, kind: dense, transform: standardize}}
  - {{name: age, kind: dense, transform: log1p}}
"""


@dataclass(frozen=True)
class Site(Drawn):
    """The known model: who meets what on which day, and the log-odds of a click."""

    term_scales: ClassVar = {
        "user": 0.4,
        "item": 0.4,
        "context": 0.7,
        "tags": 0.7,
        "sequence": 1.0,
        "dense": 0.7,
    }

    users: int
    items: int
    days: int

    @property
    def sizes(self) -> dict[str, int]:  # noqa: D102
        generations = 2 + int(NEW_A_DAY * self.days)
        return {
            "user": self.users * generations,
            "item": self.items * generations,
            "device": len(DEVICES),
            "hour": 24,
            "country": len(COUNTRIES),
            "tags": len(TAGS),
        }

    def day_starts(self) -> np.ndarray:
        """First row of each day, and the number of rows [days + 1]."""
        return np.arange(self.days + 1) * self.rows // self.days

    def in_place(self, place: np.ndarray, day: np.ndarray, places: int) -> np.ndarray:
        """Id of who (or what) has a place on a day: of one place in five it is another than on the day before."""
        generation = np.floor(NEW_A_DAY * day + _phase(place)).astype(np.int64)
        return 1 + place + places * np.clip(generation, 0, None)

    def joined(self, user: np.ndarray) -> np.ndarray:
        """The first day of a user."""
        place, generation = (user - 1) % self.users, (user - 1) // self.users
        return np.ceil((generation - _phase(place)) / NEW_A_DAY).astype(np.int64)

    def item_for(
        self, name: str, share: float, user: np.ndarray, day: np.ndarray, *keys: np.ndarray
    ) -> np.ndarray:
        """An item the user meets: with probability `share` of one of the user's interests."""
        anything = (self.uniform(f"{name} category", *keys) * CATEGORIES).astype(np.int64)
        which = (self.uniform(f"{name} interest", *keys) * INTERESTS).astype(np.int64)
        interest = self.choice("interest", CATEGORIES, user, which) - 1
        category = np.where(self.uniform(f"{name} wanted", *keys) < share, interest, anything)
        members = (self.items - 1 - category) // CATEGORIES + 1
        rank = long_tail(self.uniform(f"{name} item", *keys), members)
        return self.in_place(category + CATEGORIES * rank, day, self.items)

    def histories(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Items of each user's last events [rows, HISTORY_LENGTH]: oldest first, padding first; `time` in days."""
        rate = EVENTS_PER_DAY * (0.5 + self.uniform("events per day", user))
        last, first = (
            np.floor(rate * time).astype(np.int64),
            np.floor(rate * self.joined(user)).astype(np.int64),
        )
        event = last[:, None] - np.arange(HISTORY_LENGTH, 0, -1)
        # rows of one user share most of their events: draw each event once
        offset = np.int64(2**31)
        packed, inverse = np.unique((user[:, None] << 32) + (event + offset), return_inverse=True)
        reader, number = packed >> 32, (packed & (2**32 - 1)) - offset
        when = number / (EVENTS_PER_DAY * (0.5 + self.uniform("events per day", reader)))
        items = self.item_for("event", INTEREST_SHARE_OF_EVENTS, reader, np.floor(when), reader, number)
        return np.where(event >= first[:, None], items[inverse].reshape(event.shape), 0)

    def draw(self, row: np.ndarray) -> Columns:  # noqa: D102
        starts = self.day_starts()
        day = np.searchsorted(starts, row, "right") - 1
        second = (row - starts[day]) * DAY // (starts[day + 1] - starts[day])
        place = scattered((self.users * self.uniform("user", row) ** 1.5).astype(np.int64), self.users)
        user = self.in_place(place, day, self.users)
        item = self.item_for("shown", INTEREST_SHARE_OF_SHOWN, user, day, row)
        generation = (user - 1) // self.users
        country = 1 + (long_tail(self.uniform("country", user), len(COUNTRIES)) + 2 * generation) % len(
            COUNTRIES
        )
        on_phone = self.uniform("on the phone", row) < 1 - 0.7 * 0.8**day  # more of them each day
        price = np.exp(3 + 0.8 * self.normal("price", item) + 0.3 * self.normal("discount", row)) * (
            1 + 0.05 * day
        )
        age = 16 + np.floor(64 * self.uniform("age", user) ** 1.5)
        return {
            "user": user,
            "item": item,
            "device": np.where(on_phone, 1, self.choice("device", len(DEVICES), user)),
            "hour": 1 + (second // 3600 + np.array(list(COUNTRIES.values()))[country - 1]) % 24,
            "country": np.where(self.uniform("no country", row) < NO_COUNTRY, 0, country),
            "tags": self.tags(item, row),
            "history": self.histories(user, day + second / DAY),
            "price": np.where(self.uniform("no price", row) < NO_PRICE, np.nan, np.round(price, 2)),
            "age": np.where(self.uniform("no age", user) < NO_AGE, np.nan, age),
            "ts": MIDNIGHT + day * DAY + second,
        }

    def tags(self, item: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Ids [rows, MAX_TAGS], padding last: that of the item's category, up to three others; or none at all."""
        others = (
            1 + CATEGORIES + (self.uniform("tag", row[:, None], np.arange(MAX_TAGS)) * 6).astype(np.int64)
        )
        others[:, 0] = 1 + self.category_of(item)
        count = np.floor(1 + self.uniform("number of tags", row) * MAX_TAGS)
        count[self.uniform("no tags", item) < NO_TAGS] = 0
        return np.where(np.arange(MAX_TAGS) < count[:, None], others, 0)

    def category_of(self, item: np.ndarray) -> np.ndarray:
        """Category (0 to CATEGORIES - 1) of item ids."""
        return (item - 1) % self.items % CATEGORIES

    def terms(self, columns: Columns) -> list[np.ndarray]:  # noqa: D102
        price, age = np.log(columns["price"]), np.log1p(columns["age"])
        return [
            self.cross_term([("user",)], columns),
            self.cross_term([("item",)], columns),
            self.cross_term([("device",), ("hour",), ("country",), ("country", "device")], columns),
            self.cross_term([("tags",), ("tags", "device")], columns),
            self.attention(columns["item"], columns["history"]),
            -np.nan_to_num((price - 3) / 0.85) - np.nan_to_num(3 * (age - 3.7)),
        ]

    def attention(self, item: np.ndarray, history: np.ndarray) -> np.ndarray:
        """Mean cosine of the shown item with the history, recent and like events weighing more; 0 for no history."""
        vectors = _item_vectors(self)
        cosine = np.einsum("rk,rhk->rh", vectors[item], vectors[history])
        events_since = np.arange(HISTORY_LENGTH - 1, -1, -1)
        weights = np.where(history > 0, np.exp(2 * cosine - 0.1 * events_since), 0)
        return (weights * cosine).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)


def _phase(place: np.ndarray) -> np.ndarray:
    """In [0, 1), even over any run of places: so that of the popular ones, too, one in five changes a day."""
    return (place * 0.6180339887498949) % 1


@lru_cache(maxsize=2)
def _item_vectors(site: Site) -> np.ndarray:
    """Unit vectors [items + 1, ITEM_DIM], float32: mostly the category's, partly the item's own."""
    item, axis = np.arange(site.sizes["item"] + 1)[:, None], np.arange(ITEM_DIM)
    vectors = 0.8 * site.normal("category vector", site.category_of(item), axis)
    vectors += 0.4 * site.normal("item vector", item, axis)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def generate_clicks(
    out: Path,
    rows: int,
    seed: int = 1,
    days: int = 2,
    format: Literal["csv", "parquet"] = "csv",
) -> list[str]:
    """Write `day-<n>.<format>`, `rows` rows in all, and `clicks.yaml`, their raw schema, into the new folder `out`.

    Columns: those of SCHEMA, and `click_probability`, from which the click was drawn. Memory: CHUNK_ROWS rows, and
    all users and items. Returns a line about each day. Raises UserError for an existing `out` and for too few rows.
    """
    if rows < 100 * days:
        raise UserError(f"--rows {rows}: at least 100 a day, {100 * days}")
    users, items = (max(20, rows // days // each) for each in (ROWS_A_USER, ROWS_AN_ITEM))
    site = Site(seed, rows, users, items, days).calibrated()
    lines, best = [], []
    with staging(out, overwrite=False) as directory, progress_bar() as progress:
        task = progress.add_task("rows", total=rows)
        starts = site.day_starts().tolist()
        for day in range(days):
            name = f"day-{day + 1:0{len(str(days))}}.{format}"
            sums = np.zeros(3)  # rows, clicks, cross entropy of the true probability
            with _opened(directory / name, format) as write:
                for first in range(starts[day], starts[day + 1], CHUNK_ROWS):
                    last = min(first + CHUNK_ROWS, starts[day + 1])
                    frame = draw_rows(site, np.arange(first, last), format)
                    write(frame)
                    label, probability = frame["clicked"].to_numpy(), frame["click_probability"].to_numpy()
                    sums += len(label), label.sum(), cross_entropy(label, probability).sum()
                    progress.advance(task, frame.height)
            ne = f"{sums[2] / (sums[0] * binary_entropy(sums[1] / sums[0])):.5f}"
            best.append(f"{name} {ne}")
            lines.append(
                f"{name}: {sums[0]:,.0f} rows, {sums[1] / sums[0]:.1%} clicked, best possible NE {ne}"
            )
        summary = f"--rows {rows} --days {days} --seed {seed}, {users:,} users and {items:,} items a day."
        header = {"summary": summary, "format": format, "first": best[0].split()[0], "best": ", ".join(best)}
        write_text(directory / "clicks.yaml", SCHEMA.format(**header))
    return lines


def draw_rows(site: Site, row: np.ndarray, format: Literal["csv", "parquet"]) -> pl.DataFrame:
    """The raw columns of rows; lists are text, `a|b`, in CSV."""
    drawn = site.draw(row)
    probability = site.probability(site.scaled_terms(drawn))
    frame = pl.DataFrame(
        {
            "ts": drawn["ts"],
            "user_id": _taken(_names(USERS, site.sizes["user"]), drawn["user"]),
            "item_id": _taken(_names(ITEMS, site.sizes["item"]), drawn["item"]),
            "device": _taken(pa.array(DEVICES), drawn["device"]),
            "hour": drawn["hour"] - 1,
            "country": _taken(pa.array(list(COUNTRIES)), drawn["country"]),
            "tags": _lists(pa.array(TAGS), drawn["tags"]),
            "history": _lists(_names(ITEMS, site.sizes["item"]), drawn["history"]),
            "price": pl.Series(drawn["price"]).fill_nan(None),
            "age": pl.Series(drawn["age"]).fill_nan(None).cast(pl.Int64),
            "clicked": (site.uniform("click", row) < probability).astype(np.int8),
            "click_probability": probability,
        }
    )
    if format == "csv":
        lists = pl.col("tags", "history").list.join("|").replace("", None)
        return frame.with_columns(lists)
    return frame


@lru_cache(maxsize=4)
def _names(alphabets: tuple[str, ...], count: int) -> pa.Array:
    """Names of the ids 1 to `count`."""
    alphabet = pl.Series(alphabets).gather(scattered(np.arange(count), count) % len(alphabets))
    return (alphabet + pl.Series(np.arange(1, count + 1)).cast(pl.String)).to_arrow()


def _taken(names: pa.Array, ids: np.ndarray) -> pl.Series:
    """Names of ids from 1 on; null for 0."""
    return pl.Series(names.take(pa.array(ids - 1, mask=ids == 0)))


def _lists(names: pa.Array, ids: np.ndarray) -> pl.Series:
    """Lists of names of ids [rows, longest] without the padding."""
    present = ids > 0
    offsets = np.concatenate([[0], present.sum(axis=1).cumsum()]).astype(np.int64)
    return pl.Series(pa.LargeListArray.from_arrays(offsets, _taken(names, ids[present]).to_arrow()))


@contextmanager
def _opened(path: Path, format: Literal["csv", "parquet"]) -> Iterator[Callable[[pl.DataFrame], None]]:
    """What writes frames to a new file, one after the other."""
    if format == "csv":
        with path.open("wb") as file:
            yield lambda frame: frame.write_csv(file, include_header=not file.tell())
        return
    writer: list[PartWriter] = []

    def write(frame: pl.DataFrame) -> None:
        table = frame.to_arrow()
        if not writer:
            writer.append(PartWriter(path, table.schema))
        writer[0].write(table)

    yield write
    writer[0].close()
