"""KuaiVideo: impressions of short videos with what their users clicked and passed over before.

From ALPINE's files (Li et al., Routing Micro-videos via A Temporal Graph-guided Recommendation System, MM 2019):
`dataset.pkl`, six pickles one after the other, and `visual64_select.npy`, a vector of each video. The columns are
those of KuaiVideo_x1. A pickle can run any code when it is loaded, so this one is read by an unpickler that knows
containers, numbers and arrays only.
"""

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl

from cetnet.models.schema import Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.convert import conversion
from cetnet.trainer.prepare.engine.layout import list_column
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.tabular import prepare_table
from cetnet.trainer.prepare.sources.published import KUAIVIDEO_X1

HISTORY_LENGTH = 100
CHUNK_ROWS = 65_536
VALIDATION_SHARE = 0.1  # of train, split clean
SAMPLE = ("user", "item", "click", "like", "follow", "pos_len", "neg_len")  # columns of a split's array
BEHAVIORS = ("pos", "neg")


# ------------------------------------------------------------------------------------------------- reading


class _Dtype:
    """Stands for numpy.dtype, whose own `__setstate__` believes what it is told: numbers only."""

    def __init__(self, name: str, *_: Any) -> None:
        self.value = np.dtype(name if isinstance(name, str) else "O")
        if self.value.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of {self.value} is not numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in "<>":
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for numpy's arrays while they are pickled."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple[Any, Any, _Dtype, bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _frombuffer(data, dtype, shape, "F" if fortran else "C")


def _frombuffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _scalar(dtype: _Dtype, data: bytes) -> int | float:
    return np.frombuffer(data, dtype.value)[0].item()


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"codec {codec}")
    return text.encode("latin1")


class _DataUnpickler(pickle.Unpickler):
    """Builds containers, numbers and arrays of numbers; whatever else a pickle names is an UnpicklingError."""

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        **{("builtins", kind.__name__): kind for kind in (set, frozenset, list, dict, int, bytearray)},
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): defaultdict,
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        known = self._KNOWN.get(("builtins" if module == "__builtin__" else module, name))
        if known is None:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not data")
        return known


def read_dataset(folder: Path, path: Path) -> None:
    """Read `dataset.pkl` into arrays in the folder; anything but ALPINE's structure is a UserError.

    - `{train,test}.npy`: int64 [rows, 7], SAMPLE, in the order of time; `{train,test}_time.npy`: float64 [rows];
    - `{pos,neg}_items.npy`: int64, the videos of all users, one user after the other; `{pos,neg}_users.npy`:
      int64 [2, users], the users in order, and where their videos begin.

    Memory: one pickle as Python objects, some 300 bytes a sample.
    """
    try:
        with path.open("rb") as file:
            for name in ("train", "test"):
                samples, times = _samples(_DataUnpickler(file).load())
                order = np.argsort(times, kind="stable")
                np.save(folder / f"{name}.npy", samples[order])
                np.save(folder / f"{name}_time.npy", times[order])
            for name in BEHAVIORS:
                users, items = _sequences(_DataUnpickler(file).load())
                np.save(folder / f"{name}_users.npy", users)
                np.save(folder / f"{name}_items.npy", items)
    except OSError:  # the disk's, not the data's
        raise
    # a broken pickle can raise nearly anything
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"{path} is not ALPINE's dataset.pkl: {reason[:200]}; nothing of it was run"
        ) from error


def _samples(pickled: object) -> tuple[np.ndarray, np.ndarray]:
    """Samples ((user, item, click, like, follow, time), pos_len, neg_len) as SAMPLE and times."""
    if not isinstance(pickled, list):
        raise ValueError(f"expected a list of samples, found {type(pickled).__name__}")
    rows = len(pickled)
    flat = np.fromiter(chain.from_iterable(_drain(pickled)), np.float64, 8 * rows).reshape(rows, 8)
    samples = flat[:, [0, 1, 2, 3, 4, 6, 7]]
    if not (np.isfinite(flat).all() and (samples >= 0).all() and (samples == samples.astype(np.int64)).all()):
        raise ValueError("a sample has a number that is negative, not whole, or not finite")
    if not (samples[:, 2] <= 1).all():
        raise ValueError("a click is not 0 or 1")
    return samples.astype(np.int64), flat[:, 5]


def _drain(samples: list[Any]) -> Iterator[tuple[Any, ...]]:
    """The numbers of each sample, which is freed: arrays take its place in memory."""
    samples.reverse()
    while samples:
        shown, pos_len, neg_len = samples.pop()
        user, item, click, like, follow, time = shown
        yield user, item, click, like, follow, time, pos_len, neg_len


def _sequences(pickled: Any) -> tuple[np.ndarray, np.ndarray]:
    """The videos of users, which are positions in a list or keys of a dictionary."""
    named: Iterable[tuple[Any, Any]]
    if isinstance(pickled, Mapping):
        named = sorted(pickled.items())
    elif isinstance(pickled, list | tuple):
        named = enumerate(pickled)
    else:
        raise ValueError(f"expected the sequences of users, found {type(pickled).__name__}")
    users, lists = zip(*((int(user), _integers(items)) for user, items in named), strict=True)
    ends = np.cumsum([len(items) for items in lists])
    starts = np.concatenate([[0], ends[:-1]])
    return np.stack([np.array(users, np.int64), starts]), np.concatenate(lists)


def _integers(items: Any) -> np.ndarray:
    """A list, or an array of any form, as int64 [videos]."""
    values = np.asarray(items.value if isinstance(items, _Array) else items)
    if values.ndim != 1 or not (values.dtype.kind in "iu" or not len(values)):
        raise ValueError("a user's videos are not a list of integers")
    return values.astype(np.int64)


# --------------------------------------------------------------------------------------------------- tasks


def write_rows(
    folder: Path, arrays: Path, name: str, start: int, end: int, keep: Literal["oldest", "recent"]
) -> None:
    """Rows `start` to `end` of a published split, with their histories."""
    rows = np.load(arrays / f"{name}.npy", mmap_mode="r")[start:end]
    sample = dict(zip(SAMPLE, rows.T, strict=True))
    columns = {
        "user_id": pl.Series(sample["user"]),
        "item_id": pl.Series(sample["item"]),
        "is_click": pl.Series(sample["click"]),
    }
    for behavior in BEHAVIORS:
        items, lengths = _prefixes(arrays, behavior, sample["user"], sample[f"{behavior}_len"], keep)
        columns[f"{behavior}_items"] = list_column(items, lengths)
    pl.DataFrame(columns).write_parquet(folder / "rows.parquet")


def _prefixes(
    arrays: Path, behavior: str, user: np.ndarray, length: np.ndarray, keep: Literal["oldest", "recent"]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each user's videos the first `length`, of these the HISTORY_LENGTH oldest or most recent."""
    users, starts = np.load(arrays / f"{behavior}_users.npy")
    items = np.load(arrays / f"{behavior}_items.npy", mmap_mode="r")
    place = np.minimum(np.searchsorted(users, user), len(users) - 1)
    known = users[place] == user
    if not known.all():
        raise UserError(f"dataset.pkl: user {user[~known][0]} has samples, but no {behavior}_seq")
    length = np.minimum(length, np.append(starts[1:], len(items))[place] - starts[place])
    kept = np.minimum(length, HISTORY_LENGTH)
    first = starts[place] + (length - kept if keep == "recent" else 0)
    return items[np.arange(kept.sum()) + np.repeat(first - (kept.cumsum() - kept), kept)], kept


def add_copies(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns that KuaiVideo_x1 reads twice: videos also by their vectors, the user also as the group."""
    return rows.with_columns(
        pl.col("user_id").alias("group_id"),
        pl.col("item_id").alias("item_emb"),
        pl.col("pos_items").alias("pos_items_emb"),
        pl.col("neg_items").alias("neg_items_emb"),
    )


# ------------------------------------------------------------------------------------------------- command


def prepare_kuaivideo(
    raw: Path,
    out: Path,
    split: Literal["clean", "bars"] = "clean",
    keep: Literal["oldest", "recent"] = "oldest",
    command: str | None = None,
    **engine: Any,
) -> Schema:
    """Prepare directory `raw` with dataset.pkl and visual64_select.npy.

    The published test samples are test, whatever the time. `split="clean"`: the last tenth of train by time is
    validation. `split="bars"`: validation is the test rows again, as in published results: what is tuned on it is
    tuned on test. Rows of a split are in the order of time, equal ones in that of the file.

    Columns: label `is_click`; `group_id`, the user; categorical `user_id`, `item_id` and `item_emb`, the video
    again in the table of its given vectors; sequences `pos_items` and `neg_items`, videos that the user clicked or
    passed over before, in the publisher's order, the HISTORY_LENGTH oldest (as in KuaiVideo_x1) or most recent of
    them, and `pos_items_emb` and `neg_items_emb`, the same in the table of vectors. Users and videos seen less than
    10 times in train become id 0; the vectors are those of all videos. Times have no unit, so they are no column.

    `engine`: memory, workers, scheduler and overwrite of `prepare_table`, and so is what they mean; but the pickled
    train samples are once in memory as Python objects, 0.2 to 0.3 GB a million. Raises UserError for missing or
    malformed files and for an existing `out`.
    """
    pickled, visual = raw / "dataset.pkl", raw / "visual64_select.npy"
    settings = {"split": split, "keep": keep}
    with conversion(out, [pickled, visual], settings, engine, packed=True) as place:
        (arrays,) = place.run("arrays", "files", read_dataset, {"all": (1, (pickled,))})
        times = np.load(arrays / "train_time.npy", mmap_mode="r")
        rows = {name: len(np.load(arrays / f"{name}.npy", mmap_mode="r")) for name in ("train", "test")}
        parts = {"train": ("train", 0, rows["train"]), "test": ("test", 0, rows["test"])}
        if split == "clean":
            cut = int(np.searchsorted(times, times[int(len(times) * (1 - VALIDATION_SHARE))]))
            parts |= {"train": ("train", 0, cut), "validation": ("train", cut, rows["train"])}
        files = {}
        for name, (published, first, end) in parts.items():
            tasks = {
                f"{start:012d}": (CHUNK_ROWS, (arrays, published, start, min(start + CHUNK_ROWS, end), keep))
                for start in range(first, end, CHUNK_ROWS)
            }
            files[name] = [folder / "rows.parquet" for folder in place.run(name, "rows", write_rows, tasks)]
        if split == "bars":
            files["validation"] = files["test"]
        return prepare_table(
            raw_schema(visual, keep),
            files,
            "parquet",
            out,
            Card(
                title="KuaiVideo",
                source="Kuaishou's challenge of ACM Multimedia 2018, in ALPINE's files; not to be redistributed",
                command=command
                or f"prepare_kuaivideo(raw={str(raw)!r}, out={str(out)!r}, split={split!r}, keep={keep!r})",
                split_rule=RULES[split],
                notes=(
                    f"Histories keep the {HISTORY_LENGTH} {'oldest' if keep == 'oldest' else 'most recent'} videos.",
                ),
                published=KUAIVIDEO_X1 if split == "bars" else KUAIVIDEO_X1.of_test(),
            ),
            transform=add_copies,
            **engine,
        )


RULES = {
    "clean": "the published test samples are test; of the others the last tenth by time is validation; rows in time "
    "order",
    "bars": "the published train and test samples, each in time order; validation is the test rows again, so what is "
    "tuned on it is tuned on test",
}


def raw_schema(vectors: Path, keep: Literal["oldest", "recent"]) -> RawSchema:
    """The columns of KuaiVideo_x1 with its thresholds, and the file of the videos' vectors."""
    sequences = [
        RawFeature(
            name=f"{behavior}_items{suffix}",
            kind="sequence",
            table=table,
            max_length=HISTORY_LENGTH,
            keep=keep,
            behavior=behavior,
        )
        for behavior in BEHAVIORS
        for suffix, table in (("", "item_id"), ("_emb", "item_emb"))
    ]
    return RawSchema(
        label="is_click",
        group="group_id",
        min_count=10,
        pretrained={"item_emb": vectors},
        features=(
            *(RawFeature(name=name, kind="categorical") for name in ("user_id", "item_id", "item_emb")),
            *sequences,
        ),
    )
