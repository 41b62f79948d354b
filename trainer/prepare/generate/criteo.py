"""Criteo's display ads: the Kaggle file, the terabyte's days, and the re-packed x1 and x4."""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.generate.draw import (
    Law,
    by_shares,
    hex_text,
    numbers,
    standardized,
    write_files,
)

# of the counts I1 to I13: the median of those there are, and the share of missing ones
MEDIANS = (1, 3, 6, 4, 2813, 32, 3, 8, 38, 1, 1, 0.5, 4)
MISSING_COUNTS = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0.001, 0.04, 0.45, 0.04, 0.77, 0.22)
NEGATIVE_SHARE = 0.1  # of I2, down to -3
# of C1 to C26: the number of values, and the share of missing ones
KAGGLE_VALUES = (
    1460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194, 27,
    14_992, 5_461_306, 10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip
MISSING_IDS = {3: 0.034, 4: 0.034, 6: 0.12, 12: 0.034, 16: 0.034, 19: 0.44, 20: 0.44}
MISSING_IDS |= {21: 0.034, 22: 0.76, 24: 0.034, 25: 0.44, 26: 0.44}
TERABYTE_VALUES = (
    227_605_432, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 130_229_467, 3_067_956, 405_282, 10,
    2_209, 11_938, 155, 4, 976, 14, 292_775_614, 40_790_948, 187_188_510, 590_152, 12_973, 108, 36,
)  # fmt: skip
TELLING = (1, 2, 5, 7, 8, 14, 15, 18, 19)  # the fields C whose values matter for a click
BIAS, SCALE = -1.35, 1.3


def _count(law: Law, index: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of count `index` (1 to 13), heavy-tailed, and which of them are missing."""
    name = f"I{index}"
    u = law.uniform(name, row)
    values = np.floor(np.minimum(MEDIANS[index - 1] * (u / (1 - u)) ** 1.3, 2e6)).astype(np.int64)
    if index == 2:
        negative = law.uniform("I2 negative", row) < NEGATIVE_SHARE
        values = np.where(negative, -1 - law.rank("I2 below 0", 3, row), values)
    return values, law.uniform(f"{name} missing", row) < MISSING_COUNTS[index - 1]


def _rank(law: Law, sizes: tuple[int, ...], index: int, row: np.ndarray) -> np.ndarray:
    """Ranks of the values of field C `index`; -1 for missing ones."""
    name = f"C{index}"
    ranks = law.rank(name, sizes[index - 1], row)
    return np.where(law.uniform(f"{name} missing", row) < MISSING_IDS.get(index, 0), -1, ranks)


def _effects(law: Law, sizes: tuple[int, ...], row: np.ndarray) -> np.ndarray:
    effects = sum(law.effect(f"C{index}", _rank(law, sizes, index, row)) for index in TELLING)
    for index in (2, 6, 11):
        values, missing = _count(law, index, row)
        effects = effects + np.where(missing, 0, 0.2 * np.log1p(np.maximum(values, 0)))
    return np.asarray(effects)


def _clicks(law: Law, sizes: tuple[int, ...], row: np.ndarray) -> pl.Series:
    return law.label(BIAS + SCALE * standardized(partial(_effects, law, sizes), row), row)


def _raw(law: Law, sizes: tuple[int, ...], label: str, row: np.ndarray) -> pl.DataFrame:
    columns = {label: _clicks(law, sizes, row)}
    columns |= {f"I{index}": numbers(*_count(law, index, row)) for index in range(1, 14)}
    for index in range(1, 27):
        ranks = _rank(law, sizes, index, row)
        columns[f"C{index}"] = hex_text(law.bits(f"C{index}", ranks), ranks < 0)
    return pl.DataFrame(columns)


def _x1(law: Law, row: np.ndarray) -> pl.DataFrame:
    """Counts scaled to [0, 1], and ids numbered over all fields, nothing missing."""
    columns = {"label": _clicks(law, KAGGLE_VALUES, row)}
    for index in range(1, 14):
        values, missing = _count(law, index, row)
        scaled = np.where(missing, 0, np.log1p(np.maximum(values, 0)) / np.log(2e6)).round(6)
        columns[f"I{index}"] = pl.Series(scaled)
    first = 14
    for index, size in enumerate(KAGGLE_VALUES, 1):
        columns[f"C{index}"] = pl.Series(first + 1 + _rank(law, KAGGLE_VALUES, index, row))
        first += size + 1
    return pl.DataFrame(columns)


def generate_criteo(out: Path, rows: int, seed: int = 1) -> None:
    """`train.txt` of the Kaggle challenge: no header, tabs, a label, 13 counts, 26 hexadecimal ids."""
    draw = partial(_raw, Law(seed), KAGGLE_VALUES, "label")
    write_files(out, {"train.txt": rows}, draw, separator="\t", header=False)


def generate_criteo_1tb(out: Path, rows: int, seed: int = 1, days: int = 24) -> None:
    """`day_0.gz` to `day_<days - 1>.gz`: `rows` rows together, in the same format as the Kaggle file."""
    if days < 2:
        raise UserError(f"{days} days: give at least 2, the last one is validation and test")
    files = by_shares(rows, {f"day_{day}.gz": 1.0 for day in range(days)})
    draw = partial(_raw, Law(seed), TERABYTE_VALUES, "label")
    write_files(out, files, draw, separator="\t", header=False)


def generate_criteo_x1(out: Path, rows: int, seed: int = 1) -> None:
    """Criteo_x1: `train.csv`, `valid.csv`, `test.csv` in the published proportion."""
    files = by_shares(rows, {"train.csv": 33_003_326, "valid.csv": 8_250_124, "test.csv": 4_587_167})
    write_files(out, files, partial(_x1, Law(seed)))


def generate_criteo_x4(out: Path, rows: int, seed: int = 1) -> None:
    """Criteo_x4: `train.csv`, `valid.csv`, `test.csv`, 8:1:1, values as in the Kaggle file."""
    files = by_shares(rows, {"train.csv": 8, "valid.csv": 1, "test.csv": 1})
    write_files(out, files, partial(_raw, Law(seed), KAGGLE_VALUES, "Label"))
