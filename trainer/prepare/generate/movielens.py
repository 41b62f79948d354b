"""MovielensLatest_x1: would this user put this tag on this film?"""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from cetnet.trainer.prepare.generate.draw import Law, by_shares, standardized, write_files

VALUES = {"user_id": 16_975, "item_id": 23_604, "tag_id": 49_657}
BIAS, SCALE = -1.1, 2.0


def _effects(law: Law, row: np.ndarray) -> np.ndarray:
    ranks = {name: law.rank(name, size, row) for name, size in VALUES.items()}
    alone = sum(law.effect(name, ranks[name]) for name in VALUES)
    return np.asarray(alone + law.effect("item's tags", ranks["item_id"] % 40 * 40 + ranks["tag_id"] % 40))


def _x1(law: Law, row: np.ndarray) -> pl.DataFrame:
    """Ids numbered over all fields."""
    effects = standardized(partial(_effects, law), row)
    columns = {"label": law.label(BIAS + SCALE * effects, row)}
    first = 0
    for name, size in VALUES.items():
        columns[name] = pl.Series(first + law.rank(name, size, row))
        first += size
    return pl.DataFrame(columns)


def generate_movielens_x1(out: Path, rows: int, seed: int = 1) -> None:
    """`train.csv`, `valid.csv`, `test.csv`, 7:2:1."""
    files = by_shares(rows, {"train.csv": 7, "valid.csv": 2, "test.csv": 1})
    write_files(out, files, partial(_x1, Law(seed)))
