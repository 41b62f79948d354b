"""Amazon reviews: click rows by the protocol of DIN, from a category's reviews or from item sequences.

From `reviews_<Category>_5.json` and `meta_<Category>.json`, or `<Category>.txt` and
`<Category>_item2attributes.json`, in a directory.

Deep Interest Network (arXiv 1706.06978), section 6.1: from the items b_1 ... b_n of a user, predict the
(k+1)-th from the first k. The columns are those of AmazonElectronics_x1.
"""

import ast
import gzip
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import TypeAdapter, ValidationError

from cetnet.models.schema import Schema
from cetnet.trainer.errors import UserError, validation_message
from cetnet.trainer.prepare.engine.card import Card, Published
from cetnet.trainer.prepare.engine.convert import conversion, write_splits
from cetnet.trainer.prepare.engine.layout import list_column
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.tabular import prepare_table
from cetnet.trainer.prepare.engine.tasks import read_facts, write_facts
from cetnet.trainer.prepare.sources.published import AMAZON_ELECTRONICS_X1

CHUNK_ROWS = 65_536
ASIN = re.compile(rb"""["']asin["']: *["'](\w+)["']""")


@dataclass(frozen=True)
class Events:
    """Every (user, item), user after user, oldest first.

    `user` (its position in `users`), `index` (the event's place among the user's, from 0), `count` (the
    user's events), `item` (its position in `items`) and `time` (seconds, where known) are int64 [events].
    `users` and `items` are the distinct raw ids, text; `attributes` are lists of text, one for each item.
    """

    user: np.ndarray
    index: np.ndarray
    count: np.ndarray
    item: np.ndarray
    time: np.ndarray | None
    users: pl.Series
    items: pl.Series
    attributes: pl.Series


# ------------------------------------------------------------------------------------------------- reviews


def read_reviews(reviews: Path, meta: Path) -> Events:
    """`reviews_<Category>_5.json` and `meta_<Category>.json`, either may be gzipped.

    A review is JSON, a line each; a meta is the text of a Python dictionary, which is read as a literal and
    never run. Users and items are in the order of their ids, a user's reviews in that of unixReviewTime,
    those of one time in that of the file. An item's attributes are the categories of all its paths, so that
    the last one is the leaf of the last path; an item without a meta or categories has none. Raises
    UserError with the line of what is not as published.
    """
    codes: tuple[dict[str, int], dict[str, int]] = ({}, {})
    columns = (array("q"), array("q"), array("q"))
    for number, line in _lines(reviews):
        try:
            review = json.loads(line)
            values = review["reviewerID"], review["asin"], review["unixReviewTime"]
        except (ValueError, KeyError, TypeError, RecursionError):
            values = None, None, None
        user, item, time = values
        if not (isinstance(user, str) and isinstance(item, str) and type(time) is int and abs(time) < 2**62):
            raise UserError(
                f"{reviews} line {number}: expected a JSON review with reviewerID, asin and an integer "
                f"unixReviewTime; found {_shown(line)}"
            )
        for column, value in zip(columns, (_code(codes[0], user), _code(codes[1], item), time), strict=True):
            column.append(value)
    if not columns[0]:
        raise UserError(f"{reviews} is empty; take the original file")
    users, user_rank = _in_order(codes[0])
    items, item_rank = _in_order(codes[1])
    user, item, time = (np.frombuffer(column, np.int64) for column in columns)
    user, item = user_rank[user], item_rank[item]
    order = np.lexsort((time, user))  # stable
    count = np.bincount(user)
    categories = _read_meta(meta, set(codes[1]))
    return Events(
        user=user[order],
        index=np.concatenate([np.arange(n) for n in count]),
        count=np.repeat(count, count),
        item=item[order],
        time=time[order],
        users=users,
        items=items,
        attributes=pl.Series([categories.get(asin, []) for asin in items], dtype=pl.List(pl.String)),
    )


def _read_meta(path: Path, wanted: set[str]) -> dict[str, list[str]]:
    """The categories of these items; lines that only name others are not parsed."""
    categories = {}
    for number, line in _lines(path):
        named = [asin.decode() for asin in ASIN.findall(line)]
        if named and wanted.isdisjoint(named):
            continue
        try:
            meta = ast.literal_eval(line.decode())
            asin, paths = meta["asin"], meta.get("categories") or []
            if not (isinstance(asin, str) and all(isinstance(name, str) for path in paths for name in path)):
                raise TypeError
            categories[asin] = [name for path in paths for name in path]
        except (
            ValueError,
            SyntaxError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            raise UserError(
                f"{path} line {number}: expected a Python dictionary of literals with asin and categories; "
                f"found {_shown(line)}"
            ) from error
    return categories


def _code(codes: dict[str, int], value: str) -> int:
    return codes.setdefault(value, len(codes))


def _in_order(codes: dict[str, int]) -> tuple[pl.Series, np.ndarray]:
    """The values in order, and the place of each code in it."""
    values = sorted(codes)
    rank = np.empty(len(values), np.int64)
    rank[[codes[value] for value in values]] = np.arange(len(values))
    return pl.Series(values, dtype=pl.String), rank


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot read {path}: {reason}; take the original file") from error


def _shown(line: bytes) -> str:
    return repr(line[:60].decode(errors="replace"))


# ----------------------------------------------------------------------------------------- item sequences


def read_sequences(sequences: Path, attributes: Path) -> Events:
    """`<Category>.txt`, lines of `user item item ...` in time order, and `<Category>_item2attributes.json`.

    All ids are integers; the JSON object is from item to its attribute ids, of which the last is the leaf of
    its last category path. Items are in the order of the numbers. Raises UserError with the line of what is
    not like this.
    """
    line_of: dict[int, int] = {}
    rows = []
    for number, line in enumerate(_read(sequences).splitlines(), start=1):
        try:
            numbers = np.array([int(value) for value in line.split()], np.int64)
        except (ValueError, OverflowError):
            numbers = np.empty(0, np.int64)
        if len(numbers) < 2:
            raise UserError(
                f"{sequences} line {number}: expected `user item item ...`, integers; found {_shown(line)}"
            )
        user = int(numbers[0])
        if first := line_of.get(user):
            raise UserError(
                f"{sequences} line {number}: user {user} was in line {first} already; join the lines"
            )
        line_of[user] = number
        rows.append(numbers[1:])
    if not rows:
        raise UserError(f"{sequences} is empty; take the original file")
    count = np.array([len(row) for row in rows])
    items, item = np.unique(np.concatenate(rows), return_inverse=True)
    try:
        attributes_of = TypeAdapter(dict[int, list[int]]).validate_json(_read(attributes))
    except ValidationError as error:
        raise UserError(f"{attributes}: {validation_message(error)}; take the original file") from error
    lists = [attributes_of.get(number, []) for number in items.tolist()]
    return Events(
        user=np.repeat(np.arange(len(rows)), count),
        index=np.concatenate([np.arange(n) for n in count]),
        count=np.repeat(count, count),
        item=item,
        time=None,
        users=pl.Series(list(line_of)).cast(pl.String),
        items=pl.Series(items).cast(pl.String),
        attributes=pl.Series(lists, dtype=pl.List(pl.Int64)).cast(pl.List(pl.String)),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


# ---------------------------------------------------------------------------------------------- protocol


def find_files(raw: Path, category: str) -> tuple[Path, Path]:
    """The pair of files of the category that `raw` has; raises UserError if it has neither."""
    for names, suffixes in (
        ((f"reviews_{category}_5", f"meta_{category}"), (".json", ".json.gz")),
        ((f"{category}.txt", f"{category}_item2attributes.json"), ("",)),
    ):
        first, second = (
            next((path for suffix in suffixes if (path := raw / (name + suffix)).is_file()), None)
            for name in names
        )
        if first and second:
            return first, second
        if first:
            raise UserError(f"{raw / names[1]}{suffixes[0]} is missing: it belongs to {first}")
    raise UserError(
        f"{raw} has no reviews_{category}_5.json with meta_{category}.json (either may be .json.gz), and no "
        f"{category}.txt with {category}_item2attributes.json"
    )


def read_events(first: Path, second: Path) -> Events:
    """The events of a pair of files that `find_files` found."""
    return (read_sequences if first.suffix == ".txt" else read_reviews)(first, second)


def draw_negatives(events: Events, rng: np.random.Generator) -> np.ndarray:
    """For every event an item, int64 [events]: uniform over those its user never interacts with."""
    width = len(events.items)
    taken = np.unique(events.user * width + events.item)
    if (full := np.bincount(taken // width) == width).any():
        user = events.users[int(full.argmax())]
        raise UserError(
            f"user {user} has every one of the {width} items, so there is no negative for that user"
        )
    drawn = rng.integers(width, size=len(events.user))
    again = np.arange(len(events.user))
    while len(again := again[np.isin(events.user[again] * width + drawn[again], taken)]):
        drawn[again] = rng.integers(width, size=len(again))
    return drawn


def split_places(events: Events, split: Literal["clean", "bars"]) -> dict[str, np.ndarray]:
    """The events that are predicted in each split, as their places in `events`."""
    from_end = events.count - 1 - events.index
    predicted = events.index > 0
    test = np.flatnonzero(predicted & (from_end == 0))
    if split == "bars":
        return {"train": np.flatnonzero(predicted & (from_end > 0)), "test": test}
    return {
        "train": np.flatnonzero(predicted & (from_end > 1)),
        "validation": np.flatnonzero(predicted & (from_end == 1)),
        "test": test,
    }


def _histories(
    events: Events, event: np.ndarray, max_length: int, keep: Literal["recent", "oldest"]
) -> tuple[np.ndarray, np.ndarray]:
    """Items before each of these events, list after list, and the lengths of the lists."""
    before = events.index[event]
    lengths = np.minimum(before, max_length)
    start = event - (lengths if keep == "recent" else before)
    within = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    return events.item[np.repeat(start, lengths) + within], lengths


def click_rows(
    events: Events,
    split: Literal["clean", "bars"],
    max_length: int,
    keep: Literal["recent", "oldest"],
    rng: np.random.Generator,
) -> Iterator[tuple[str, pl.DataFrame]]:
    """(split, rows) with raw ids, CHUNK_ROWS at a time: a positive and a negative of each place."""
    negatives = draw_negatives(events, rng)
    cates = events.attributes.list.last()
    attributes = events.attributes.list.unique(maintain_order=True)
    for name, place in split_places(events, split).items():
        row = np.arange(2 * len(place))
        if name == "train":
            rng.shuffle(row)
        for start in range(0, len(row), CHUNK_ROWS):
            chunk = row[start : start + CHUNK_ROWS]
            event, positive = place[chunk // 2], chunk % 2 == 0
            item = np.where(positive, events.item[event], negatives[event])
            history, lengths = _histories(events, event, max_length, keep)
            columns: dict[str, Any] = {
                "label": positive.astype(np.int8),
                "user_id": events.users.gather(events.user[event]),
                "item_id": events.items.gather(item),
                "cate_id": cates.gather(item),
                "attributes": attributes.gather(item),
                "item_history": list_column(events.items.gather(history), lengths),
                "cate_history": list_column(cates.gather(history), lengths),
            }
            if events.time is not None:
                columns["timestamp"] = events.time[event]
            yield name, pl.DataFrame(columns)


def write_click_rows(
    folder: Path,
    paths: tuple[Path, Path],
    split: Literal["clean", "bars"],
    max_length: int,
    keep: Literal["recent", "oldest"],
    seed: int,
) -> None:
    """`click_rows` as a Parquet file a split; facts.json: a line for the card, and whether there are times."""
    events = read_events(*paths)
    rng = np.random.default_rng(seed % 2**64)
    write_splits(folder, click_rows(events, split, max_length, keep, rng))
    counts = f"{len(events.users):,} users, {len(events.items):,} items, {len(events.user):,} events"
    nowhere = int((events.attributes.list.len() == 0).sum())
    note = f"{counts}; {nowhere:,} items have no category (id 0)."
    write_facts(folder, {"note": note, "timestamp": events.time is not None})


RULES = {
    "clean": "the last item of each user is test, the one before it validation, the others train "
    "(a positive and a negative row each); train shuffled",
    "bars": "the last item of each user is test, the others train (a positive and a negative row "
    "each); train shuffled; validation is the test rows again, so what is tuned on it is tuned on test",
}


def prepare_amazon(
    raw: Path,
    category: str,
    out: Path,
    split: Literal["clean", "bars"] = "clean",
    max_length: int = 50,
    keep: Literal["recent", "oldest"] = "recent",
    attributes: bool = False,
    seed: int = 1,
    command: str | None = None,
    **engine: Any,
) -> Schema:
    """Prepare a category from the files in directory `raw`: see `read_reviews` and `read_sequences`.

    For each user with items 0 ... n-1 and each i from 1: a positive row with item i, and a negative one with
    an item the user never interacts with; the history of both is items 0 ... i-1, cut to the `max_length`
    most recent or oldest. i = n-1 is test. `split="clean"`: i = n-2 is validation, the rest train.
    `split="bars"`: all but test is train, and validation is the test rows again, as in published results:
    what is tuned on it is tuned on test. Train is shuffled; the others are in the order of the users.

    Columns: `label`; `user_id` (int64, the group, not a feature); where there are times, `timestamp` (int64,
    seconds, of the predicted review; the negative's is the positive's); categorical `item_id` and `cate_id`;
    sequences `item_history` and `cate_history`, aligned, in the tables of these two; with `attributes` also
    the multi-valued `attributes`, each of the item's once.

    In memory: all events, 0.25 GB a million, whatever the limit; `engine` are memory, workers, scheduler and
    overwrite of `prepare_table`, which prepares the rows. `command` is what the card names as its origin. Raises
    UserError for missing or malformed files and for an existing `out`.
    """
    paths = find_files(raw, category)
    settings = {"split": split, "max_length": max_length, "keep": keep, "seed": seed}
    with conversion(out, paths, settings, engine) as place:
        arguments = (paths, split, max_length, keep, seed)
        (rows,) = place.run("rows", "files", write_click_rows, {"all": (1, arguments)})
        facts = read_facts(rows)
        names = {"train": "train", "validation": "test" if split == "bars" else "validation", "test": "test"}
        return prepare_table(
            raw_schema(max_length, keep, attributes, facts["timestamp"]),
            {name: [rows / f"{file}.parquet"] for name, file in names.items()},
            "parquet",
            out,
            Card(
                title=f"Amazon {category}",
                source=f"Amazon reviews (McAuley et al., 2015), {category}, 5-core; not to be redistributed",
                command=command
                or f"prepare_amazon(raw={str(raw)!r}, category={category!r}, out={str(out)!r}, split={split!r}, "
                f"max_length={max_length}, keep={keep!r}, attributes={attributes}, seed={seed})",
                notes=(
                    facts["note"],
                    "A negative is uniform over the items that its user never interacts with, before or after; "
                    "both rows of a pair have the same history.",
                    f"Histories keep the {max_length} {'most recent' if keep == 'recent' else 'oldest'} items.",
                    "`cate_id` is the leaf of an item's last category path.",
                ),
                split_rule=RULES[split],
                seed=seed,
                published=_published(category, split),
            ),
            **engine,
        )


def _published(category: str, split: str) -> Published | None:
    """What is known of Electronics; under the clean split, of test only."""
    if category != "Electronics":
        return None
    return AMAZON_ELECTRONICS_X1 if split == "bars" else AMAZON_ELECTRONICS_X1.of_test()


def raw_schema(
    max_length: int, keep: Literal["recent", "oldest"], attributes: bool, timestamp: bool
) -> RawSchema:
    """The columns of `click_rows` that are features, and what the others are."""
    features = [
        RawFeature(name="item_id", kind="categorical"),
        RawFeature(name="cate_id", kind="categorical"),
        *(
            RawFeature(name=name, kind="sequence", table=table, max_length=max_length, keep=keep)
            for name, table in (("item_history", "item_id"), ("cate_history", "cate_id"))
        ),
    ]
    if attributes:
        features.insert(2, RawFeature(name="attributes", kind="multi_valued"))
    return RawSchema(
        label="label",
        group="user_id",
        timestamp="timestamp" if timestamp else None,
        features=tuple(features),
    )
