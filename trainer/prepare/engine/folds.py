"""Published splits of the rows of one or two files: each row's split follows from its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import Fractions
from cetnet.trainer.prepare.engine.splits import Assign, Frames

STRATIFIED_SEED = 2018


def stratified_folds(labels: np.ndarray, folds: int = 10, seed: int = STRATIFIED_SEED) -> np.ndarray:
    """The fold (int8) of each row, as of `StratifiedKFold(folds, shuffle=True, random_state=seed)`.

    In scikit-learn 0.19.1, which the x4 splits were made with: the rows of each class are shuffled with the
    same fresh seed, and cut into folds one after the other, of which the first are one row larger.
    (Since 0.22 classes are interleaved otherwise.) `labels` [rows] are any numbers. Memory: 8 bytes a row.
    """
    result = np.empty(len(labels), np.int8)
    for label in np.unique(labels):
        members = labels == label
        size = int(np.count_nonzero(members))
        order = np.arange(max(size, folds), dtype=np.int32)
        np.random.RandomState(seed).shuffle(order)  # the generator of that time
        fold = np.empty(len(order), np.int8)
        for number, part in enumerate(np.array_split(order, folds)):
            fold[part] = number
        result[members] = fold[:size]
    return result


def torch_random_split(rows: int, seed: int = 0) -> np.ndarray:
    """Index into SPLITS (int8) of each row, as of `torch.utils.data.random_split` into 80 %, 10 % and the rest.

    The generator is torch's with `manual_seed(seed)`; train and validation are rounded down. Memory: 5 bytes
    a row (9 from 2**31), and torch's own.
    """
    import torch  # torch is for its generator alone, and slow to import

    dtype = torch.int32 if rows < 2**31 else torch.int64
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed), dtype=dtype).numpy()
    train, validation = int(rows * 0.8), int(rows * 0.1)
    result = np.full(rows, 2, np.int8)
    result[order[:train]] = 0
    result[order[train : train + validation]] = 1
    return result


@dataclass(frozen=True)
class StratifiedSplit:
    """Tenths with equal shares of positives: fold 0 is test, fold 1 validation, as x4 has it."""

    in_time_order: bool = False

    @property
    def rule(self) -> str:
        """In words."""
        return (
            f"StratifiedKFold(10, shuffle=True, random_state={STRATIFIED_SEED}) of scikit-learn 0.19.1: fold 0 is "
            "test, fold 1 validation; rows in their order"
        )

    def fit(self, frames: Frames) -> Assign:
        """Memory: 8 bytes a row."""
        labels = np.concatenate([frame["#label"].to_numpy().astype(np.int8) for frame in frames(["#label"])])
        folds = stratified_folds(labels)
        return _lookup(len(folds), validation=folds == 1, test=folds == 0)


@dataclass(frozen=True)
class TorchSplit:
    """80 %, 10 % and the rest at random, as the multi-embedding study has it."""

    in_time_order: bool = False

    @property
    def rule(self) -> str:
        """In words."""
        return (
            "torch.utils.data.random_split into 80 %, 10 % and the rest, with the generator's seed 0; rows in "
            "their order"
        )

    def fit(self, frames: Frames) -> Assign:
        """Memory: that of `torch_random_split`."""
        split = torch_random_split(_count_rows(frames))
        return _lookup(len(split), validation=split == 1, test=split == 2)


@dataclass(frozen=True)
class OrderSplit:
    """The first rows are train, the next validation, the last test: where rows are in order of time."""

    fractions: Fractions
    in_time_order: bool = False

    @property
    def rule(self) -> str:
        """In words."""
        return f"in the order of the rows, which is that of time: {', '.join(f'{f:.0%}' for f in self.fractions)}"

    def fit(self, frames: Frames) -> Assign:
        """Count the rows."""
        rows = _count_rows(frames)
        return partial(_by_row, [round(rows * share) for share in np.cumsum(self.fractions)[:2]])


@dataclass(frozen=True)
class LastFileSplit:
    """The last file is validation in its first half, test in its second; the others are train."""

    in_time_order: bool = False

    @property
    def rule(self) -> str:
        """In words."""
        return "the last day's first half of the rows is validation, its second half test; the other days are train"

    def fit(self, frames: Frames) -> Assign:
        """Count the rows of the last file."""
        before = total = last = 0
        for frame in frames(["#file"]):
            if frame["#file"][0] > last:
                before, last = total, frame["#file"][0]
            total += frame.height
        return partial(_by_row, [before, before + (total - before + 1) // 2])


@dataclass(frozen=True)
class TailSplit:
    """The second file is test; of the first, the last `share` of the rows is validation.

    With `train`, the path of the first file, by its column `time` of integers; else in the order of the rows.
    """

    share: float
    train: Path | None = None
    time: str = ""
    in_time_order: bool = False

    @property
    def rule(self) -> str:
        """In words."""
        how = f"by {self.time}; equal ones stay together" if self.train else "in the order of the rows"
        return f"test.csv is test; the last {self.share:.0%} of train.csv is validation ({how})"

    def fit(self, frames: Frames) -> Assign:
        """Find the first row, or the first time, of validation. Memory: by time, 20 bytes a row of `train`."""
        if self.train is None:
            rows = sum(int((frame["#file"] == 0).sum()) for frame in frames(["#file"]))
            return partial(_by_row, [rows - round(rows * self.share), rows])
        times = _read_columns(self.train, pl.col(self.time).cast(pl.Int64, strict=False))[self.time]
        if times.is_empty():
            raise UserError(f"{self.train} has no rows: get it again")
        if times.null_count():
            row = 1 + (times.is_null().arg_max() or 0)
            raise UserError(f"{self.train}: column {self.time!r}, row {row}: expected an integer")
        cut = times.sort()[int(len(times) * (1 - self.share))]
        if cut == times.min():
            raise UserError(
                f"{self.train} has too few distinct times to hold out the last: give --split bars"
            )
        return _lookup(len(times), validation=(times >= cut).to_numpy(), otherwise=2)


@dataclass(frozen=True)
class LastOfUserSplit:
    """The second file is test; of the first, validation are the rows of each user's last, longest history.

    Attributes:
        train: the first file, with the columns `user_id` and `history`, a list of text.
        history: as it is before it is truncated.
        separator: of the list.
    """

    train: Path
    history: str
    separator: str
    in_time_order: bool = False

    @property
    def rule(self) -> str:
        """In words."""
        return (
            "test.csv is test; of train.csv, the last interaction of each user with two or more (the rows with "
            "the longest history) is validation; rows in their order"
        )

    def fit(self, frames: Frames) -> Assign:  # noqa: ARG002
        """Read the two columns. Memory: some 100 bytes a row of `train`."""
        length = pl.col(self.history).fill_null("").str.count_matches(self.separator, literal=True)
        rows = _read_columns(self.train, pl.col("user_id"), length.alias("length"))
        lengths = pl.col("length")
        last = (lengths == lengths.max().over("user_id")) & (lengths > lengths.min().over("user_id"))
        return _lookup(rows.height, validation=rows.select(last).to_series().to_numpy(), otherwise=2)


def _read_columns(path: Path, *columns: pl.Expr) -> pl.DataFrame:
    return (
        pl.scan_csv(path, infer_schema=False, quote_char=None, glob=False)
        .select(columns)
        .collect(engine="streaming")
    )


def _count_rows(frames: Frames) -> int:
    return sum(frame.height for frame in frames(["#row"]))


def _by_row(cuts: Sequence[int], frame: pl.DataFrame) -> pl.Series:
    return pl.Series(np.searchsorted(cuts, frame["#row"].to_numpy(), side="right").astype(np.int8))


def _lookup(rows: int, validation: np.ndarray, test: np.ndarray | None = None, otherwise: int = 0) -> Assign:
    """The split of each of the first rows, train by default; of those after them, `otherwise`.

    A bit a row and mask goes to each task.
    """
    masks = [np.packbits(mask) for mask in (validation, test) if mask is not None]
    return partial(_looked_up, rows, masks, otherwise)


def _looked_up(rows: int, masks: Sequence[np.ndarray], otherwise: int, frame: pl.DataFrame) -> pl.Series:
    row = frame["#row"].to_numpy()
    known = np.minimum(row, rows - 1)
    byte, shift = known >> 3, 7 - (known & 7)
    index = sum((mask[byte] >> shift & 1) * split for split, mask in enumerate(masks, start=1))
    return pl.Series(np.where(row < rows, index, otherwise).astype(np.int8))
