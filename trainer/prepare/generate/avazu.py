"""Avazu's mobile ads: the Kaggle file, and the re-packed x1 and x4."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from cetnet.trainer.prepare.generate.draw import Law, by_shares, hex_text, standardized, write_files

HOURS = [f"{datetime(2014, 10, 21) + timedelta(hours=hour):%y%m%d%H}" for hour in range(240)]
# the number of values of each column, and how those are written that are not hexadecimal
VALUES = {
    "C1": 7, "banner_pos": 7, "site_id": 4_737, "site_domain": 7_745, "site_category": 26, "app_id": 8_552,
    "app_domain": 559, "app_category": 36, "device_id": 2_686_408, "device_ip": 6_729_486,
    "device_model": 8_251, "device_type": 5, "device_conn_type": 4, "C14": 2_626, "C15": 8, "C16": 9,
    "C17": 435, "C18": 4, "C19": 68, "C20": 173, "C21": 60,
}  # fmt: skip
WRITTEN = {
    "C1": (1005, 1002, 1010, 1012, 1007, 1001, 1008),
    "banner_pos": (0, 1, 7, 2, 4, 5, 3),
    "device_type": (1, 0, 4, 5, 2),
    "device_conn_type": (0, 2, 3, 5),
    "C15": (320, 300, 216, 728, 120, 1024, 480, 768),
    "C16": (50, 250, 36, 480, 90, 20, 768, 320, 1024),
    "C18": (0, 3, 2, 1),
}
STEPS = {"C14": (375, 9), "C17": (112, 6), "C19": (33, 13), "C20": (99_999, 1), "C21": (1, 4)}
COMMON = {"device_id": 0.82, "C20": 0.47}  # the share of the first value, beyond the long tail's
TELLING = ("site_id", "site_category", "app_category", "banner_pos", "device_model", "C17", "C21")
BIAS, SCALE = -1.95, 1.2


def _rank(law: Law, name: str, row: np.ndarray) -> np.ndarray:
    ranks = law.rank(name, VALUES[name], row)
    return np.where(law.uniform(f"{name} common", row) < COMMON.get(name, 0), 0, ranks)


def _effects(law: Law, row: np.ndarray) -> np.ndarray:
    return np.asarray(sum(law.effect(name, _rank(law, name, row)) for name in TELLING))


def _column(law: Law, name: str, row: np.ndarray) -> pl.Series:
    ranks = _rank(law, name, row)
    if name in WRITTEN:
        return pl.Series(np.array(WRITTEN[name])[ranks])
    if name in STEPS:
        first, step = STEPS[name]
        values = first + step * ranks
        return pl.Series(np.where(ranks == 0, -1, values) if name == "C20" else values)
    return hex_text(law.bits(name, ranks))


def _clicks(law: Law, row: np.ndarray) -> pl.Series:
    return law.label(BIAS + SCALE * standardized(partial(_effects, law), row), row)


def _raw(law: Law, hour: Callable[[np.ndarray], np.ndarray], row: np.ndarray) -> pl.DataFrame:
    columns = {
        "id": pl.Series(law.bits("id", row)),  # up to 20 digits
        "click": _clicks(law, row),
        "hour": pl.Series(HOURS).gather(hour(row)),
    }
    return pl.DataFrame(columns | {name: _column(law, name, row) for name in VALUES})


def _in_order(rows: int, row: np.ndarray) -> np.ndarray:
    return row * len(HOURS) // rows


def _any_hour(law: Law, row: np.ndarray) -> np.ndarray:
    return (law.uniform("hour", row) * len(HOURS)).astype(np.int64)


def _x1(law: Law, row: np.ndarray) -> pl.DataFrame:
    """Ids numbered over all fields."""
    columns = {"label": _clicks(law, row), "feat_1": pl.Series(1 + _any_hour(law, row))}
    first = 1 + len(HOURS)
    for index, (name, size) in enumerate(VALUES.items(), 2):
        columns[f"feat_{index}"] = pl.Series(first + _rank(law, name, row))
        first += size
    return pl.DataFrame(columns)


def generate_avazu(out: Path, rows: int, seed: int = 1) -> None:
    """`train.csv` of the Kaggle challenge: 10 days, hour by hour."""
    law = Law(seed)
    write_files(out, {"train.csv": rows}, partial(_raw, law, partial(_in_order, rows)))


def generate_avazu_x1(out: Path, rows: int, seed: int = 1) -> None:
    """Avazu_x1: `train.csv`, `valid.csv`, `test.csv`, 7:1:2."""
    files = by_shares(rows, {"train.csv": 7, "valid.csv": 1, "test.csv": 2})
    write_files(out, files, partial(_x1, Law(seed)))


def generate_avazu_x4(out: Path, rows: int, seed: int = 1) -> None:
    """Avazu_x4: `train.csv`, `valid.csv`, `test.csv`, 8:1:1, columns as in the Kaggle file."""
    law = Law(seed)
    files = by_shares(rows, {"train.csv": 8, "valid.csv": 1, "test.csv": 1})
    write_files(out, files, partial(_raw, law, partial(_any_hour, law)))
