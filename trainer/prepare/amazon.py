"""Amazon reviews, as 5-core item sequences with attributes: click rows by the protocol of DIN.

Deep Interest Network (arXiv 1706.06978), section 6.1: from the items b_1 ... b_n of a user, predict the
(k+1)-th from the first k. The columns are those of AmazonElectronics_x1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import TypeAdapter, ValidationError

from models.schema import Feature, Schema
from trainer.errors import UserError
from trainer.prepare.dataset import Card, build_vocabulary, encode, list_column, staging, write_dataset

CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Events:
    """Every (user, item), user after user, oldest first.

    `user` and `index` (the event's place among the user's, from 0), `count` (the user's events) and `item`
    (its position in `items`, the distinct raw ids in order) are int64 [events].
    """

    user: np.ndarray
    index: np.ndarray
    count: np.ndarray
    item: np.ndarray
    items: np.ndarray


def read_events(path: Path) -> Events:
    """A line is `user item item ...`, integers, in time order; anything else is a UserError with its line."""
    line_of: dict[int, int] = {}
    sequences = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            numbers = np.array([int(value) for value in line.split()], np.int64)
        except (ValueError, OverflowError):
            numbers = np.empty(0, np.int64)
        if len(numbers) < 2:
            found = line[:60].decode(errors="replace")
            raise UserError(f"{path} line {number}: expected `user item item ...`, integers; found {found!r}")
        user = int(numbers[0])
        if first := line_of.get(user):
            raise UserError(f"{path} line {number}: user {user} was in line {first} already; join the lines")
        line_of[user] = number
        sequences.append(numbers[1:])
    if not sequences:
        raise UserError(f"{path} is empty; take the original file")
    count = np.array([len(sequence) for sequence in sequences])
    items, item = np.unique(np.concatenate(sequences), return_inverse=True)
    return Events(
        user=np.repeat(np.array(list(line_of)), count),
        index=np.concatenate([np.arange(n) for n in count]),
        count=np.repeat(count, count),
        item=item,
        items=items,
    )


def read_attributes(path: Path) -> dict[int, list[int]]:
    """A JSON object from item to its attribute ids; anything else is a UserError."""
    try:
        return TypeAdapter(dict[int, list[int]]).validate_json(_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: {where + ': ' if where else ''}{first['msg']}; take the original file"
        ) from error


def draw_negatives(events: Events, rng: np.random.Generator) -> np.ndarray:
    """For every event an item, int64 [events]: uniform over those its user never interacts with."""
    width = len(events.items)
    _, owner = np.unique(events.user, return_inverse=True)
    taken = np.unique(owner * width + events.item)
    if (full := np.bincount(taken // width) == width).any():
        user = events.user[full[owner]][0]
        raise UserError(
            f"user {user} has every one of the {width} items, so there is no negative for that user"
        )
    drawn = rng.integers(width, size=len(owner))
    again = np.arange(len(owner))
    while len(again := again[np.isin(owner[again] * width + drawn[again], taken)]):
        drawn[again] = rng.integers(width, size=len(again))
    return drawn


def prepare_amazon(
    raw: Path,
    category: str,
    out: Path,
    split: Literal["clean", "din"] = "clean",
    max_length: int = 50,
    keep: Literal["recent", "oldest"] = "recent",
    attributes: bool = False,
    overwrite: bool = False,
    seed: int = 1,
    command: str | None = None,
) -> Schema:
    """Prepare `<category>.txt` and `<category>_item2attributes.json` in directory `raw`.

    For each user with items 0 ... n-1 and each i from 1: a positive row with item i, and a negative one with
    an item the user never interacts with; the history of both is items 0 ... i-1, cut to the `max_length`
    most recent or oldest. i = n-1 is test. `split="clean"`: i = n-2 is validation, the rest train.
    `split="din"`: all but test is train, and validation is the test rows again, as in published results:
    what is tuned on it is tuned on test. Train is shuffled; the others are in the order of the users.

    Columns: `label`; `user_id` (int64, the group, not a feature); categorical `item_id` and `cate_id`, the
    last of the item's attributes, which is the leaf of its last category path, as DIN takes it; sequences
    `item_history` and `cate_history`, aligned, in the tables of these two; with `attributes` also the
    multi-valued `attributes`, each of the item's once.

    In memory: all events, and CHUNK_ROWS rows. `command` is what the card names as its origin. Raises
    UserError for missing or malformed files and for an existing `out`.
    """
    with staging(out, overwrite) as directory:
        events = read_events(raw / f"{category}.txt")
        attributes_of = read_attributes(raw / f"{category}_item2attributes.json")
        rng = np.random.default_rng(seed % 2**64)
        negatives = draw_negatives(events, rng)
        places = split_places(events, split)

        # histories of training rows hold nothing but items of other training rows, and first items
        train = places["train"]
        firsts = train[events.index[train] == 1] - 1
        in_train = np.unique(np.concatenate([events.item[train], events.item[firsts], negatives[train]]))
        lists = [attributes_of.get(item, []) for item in events.items.tolist()]
        catalogue = pl.DataFrame(
            {"item_id": events.items, "attributes": lists}, schema_overrides={"attributes": pl.List(pl.Int64)}
        ).with_columns(pl.col("attributes").list.last().alias("cate_id"))
        known = catalogue[in_train]
        vocabularies = {
            "item_id": build_vocabulary(known["item_id"]),
            "cate_id": build_vocabulary(known["cate_id"]),
            "attributes": build_vocabulary(known["attributes"].explode()),
        }
        catalogue = catalogue.select(
            encode(pl.col("item_id"), vocabularies["item_id"]),
            encode(pl.col("cate_id"), vocabularies["cate_id"]),
            pl.col("attributes")
            .list.unique(maintain_order=True)
            .list.eval(encode(pl.element(), vocabularies["attributes"])),
        )
        features = [
            Feature(name="item_id", kind="categorical"),
            Feature(name="cate_id", kind="categorical"),
            Feature(name="item_history", kind="sequence", table="item_id", max_length=max_length),
            Feature(name="cate_history", kind="sequence", table="cate_id", max_length=max_length),
        ]
        if attributes:
            features.insert(2, Feature(name="attributes", kind="multi_valued"))
        tables = {feature.table for feature in features}
        schema = Schema(
            label="label",
            group="user_id",
            tables={name: len(vocabulary) + 1 for name, vocabulary in vocabularies.items() if name in tables},
            features=tuple(features),
        )

        def frames() -> Iterator[tuple[str, pl.DataFrame]]:
            for name, place in places.items():
                row = np.arange(2 * len(place))  # the positive and the negative of each place in turn
                if name == "train":
                    rng.shuffle(row)
                for start in range(0, len(row), CHUNK_ROWS):
                    chunk = row[start : start + CHUNK_ROWS]
                    event, positive = place[chunk // 2], chunk % 2 == 0
                    item = np.where(positive, events.item[event], negatives[event])
                    history, lengths = _histories(events, event, max_length, keep)
                    yield (
                        name,
                        catalogue[item].with_columns(
                            pl.Series("label", positive.astype(np.int8)),
                            pl.Series("user_id", events.user[event]),
                            list_column(catalogue["item_id"].to_numpy()[history], lengths).alias(
                                "item_history"
                            ),
                            list_column(catalogue["cate_id"].to_numpy()[history], lengths).alias(
                                "cate_history"
                            ),
                        ),
                    )

        rules = {
            "clean": "the last item of each user is test, the one before it validation, the others train "
            "(a positive and a negative row each); train shuffled",
            "din": "the last item of each user is test, the others train (a positive and a negative row "
            "each); train shuffled; validation is the test rows again, so what is tuned on it is tuned on test",
        }
        return write_dataset(
            directory,
            schema,
            frames(),
            Card(
                title=f"Amazon {category}",
                source=f"Amazon reviews (McAuley et al., 2015), {category}, 5-core sequences with item "
                "attributes; not to be redistributed",
                split_rule=rules[split],
                command=command
                or f"prepare_amazon(raw={str(raw)!r}, category={category!r}, out={str(out)!r}, "
                f"split={split!r}, max_length={max_length}, keep={keep!r}, attributes={attributes}, seed={seed})",
                seed=seed,
                notes=(
                    "A negative is uniform over the items that its user never interacts with, before or after; "
                    "both rows of a pair have the same history.",
                    f"Histories keep the {max_length} {'most recent' if keep == 'recent' else 'oldest'} items.",
                    "Vocabularies are of the training rows, negatives included; "
                    f"{len(events.items) - len(in_train):,} of {len(events.items):,} items are in no training row.",
                    "`cate_id` is the last of an item's attributes: the leaf of its last category path. The "
                    "data has no timestamps.",
                ),
            ),
            total_rows=2 * sum(len(place) for place in places.values()),
        )


def split_places(events: Events, split: Literal["clean", "din"]) -> dict[str, np.ndarray]:
    """The events that are predicted in each split, as their places in `events`."""
    from_end = events.count - 1 - events.index
    predicted = events.index > 0
    test = np.flatnonzero(predicted & (from_end == 0))
    if split == "din":
        return {"train": np.flatnonzero(predicted & (from_end > 0)), "validation": test, "test": test}
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: the raw directory needs <category>.txt and <category>_item2attributes.json"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
