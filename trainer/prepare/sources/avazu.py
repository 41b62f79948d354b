"""Avazu's mobile ads: the Kaggle challenge's `train.csv`, or the re-packed Avazu_x1 and Avazu_x4.

The re-packed ones are `train.csv`, `valid.csv` and `test.csv` in a directory.
"""

from pathlib import Path
from typing import Any, Literal

import polars as pl

from cetnet.models.schema import Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.folds import StratifiedSplit, TorchSplit
from cetnet.trainer.prepare.engine.layout import DEFAULT_FRACTIONS
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.splits import Split, TimeSplit
from cetnet.trainer.prepare.engine.tabular import prepare_table
from cetnet.trainer.prepare.sources import published
from cetnet.trainer.prepare.sources.raw_files import (
    Protocol,
    check_header,
    choose_protocol,
    converted,
    first_line,
    given_files,
)

FIELDS = (
    "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
    "device_id", "device_ip", "device_model", "device_type", "device_conn_type", "C14", "C15", "C16", "C17",
    "C18", "C19", "C20", "C21",
)  # fmt: skip
COLUMNS = ("id", "click", "hour", *FIELDS)
X1_COLUMNS = ("label", *(f"feat_{index}" for index in range(1, 23)))
HOUR = "an hour YYMMDDHH"
PUBLISHED = {
    "multi_embedding": published.AVAZU,
    "x1": published.AVAZU_X1,
    "x4_001": published.AVAZU_X4_001,
    "x4_002": published.AVAZU_X4_002,
}


def multi_embedding(frame: pl.DataFrame) -> pl.DataFrame:
    """The hour as it is, `timestamp` (Int64, seconds) beside it, and `label`."""
    return frame.with_columns(_hours(frame).dt.epoch("s").alias("timestamp"), pl.col("click").alias("label"))


def x4(frame: pl.DataFrame) -> pl.DataFrame:
    """The hour as hour of the day, `weekday` (0 is Sunday) and `weekend`; and `timestamp`."""
    time = _hours(frame)
    weekday = time.dt.weekday() % 7
    return frame.with_columns(
        time.dt.epoch("s").alias("timestamp"),
        time.dt.hour().cast(pl.String).alias("hour"),
        weekday.cast(pl.String).alias("weekday"),
        weekday.is_in([0, 6]).cast(pl.Int8).cast(pl.String).alias("weekend"),
    )


def _hours(frame: pl.DataFrame) -> pl.Series:
    frame = frame.with_columns(pl.col("hour").fill_null(""))  # an hour must be there
    digits = pl.col("hour").str.extract("^([0-9]{8})$")  # to_datetime takes blanks and fewer digits too
    time = (digits + "00").str.to_datetime("%y%m%d%H%M", strict=False)
    return converted(frame, {"hour": time}, HOUR)["hour"]


def raw_schema(protocol: Protocol, timestamp: bool = False) -> RawSchema:
    """22 categorical fields, 24 for x4, which has the hour in three."""
    if protocol == "x1":
        label, names, min_count = "label", X1_COLUMNS[1:], 1
    elif protocol == "multi_embedding":
        label, names, min_count = "label", ("hour", *FIELDS), 4
    else:
        label, names = "click", ("hour", "weekday", "weekend", *FIELDS)
        min_count = 2 if protocol == "x4_001" else 1
    return RawSchema(
        label=label,
        timestamp="timestamp" if timestamp else None,
        features=tuple(RawFeature(name=name, kind="categorical") for name in names),
        min_count=min_count,
        quote=None,
    )


def prepare_avazu(
    raw: Path,
    out: Path,
    protocol: Protocol | None = None,
    split: Literal["published", "time"] = "published",
    *,
    command: str,
    **engine: Any,
) -> Schema:
    """Prepare the Kaggle challenge's `train.csv` (or a directory with it), or the re-packed x1 or x4 in a directory.

    Protocols: `multi_embedding` (CETNet's tables 4 and 5: 22 fields, values seen less than 4 times in train become
    id 0; 80/10/10 by torch's random_split), `x4_001` and `x4_002` (Avazu_x4 of BARS: hour, weekday and weekend,
    min_count 2 and 1, stratified folds), `x1` (Avazu_x1 of BARS: min_count 1, only from its own files). Default:
    that of the files, `multi_embedding` for the challenge's, `x4_001` for x4. `split="time"`: the challenge's rows
    by hour, 80/10/10, with `timestamp` (int64, seconds; hours are taken as UTC).

    `engine`: memory, workers, scheduler and overwrite of `prepare_table`, whose errors are raised too. Raises
    UserError for files that are not of Avazu, and for a protocol or split that they can't have.
    """
    repacked = raw.is_dir() and ((raw / "valid.csv").exists() or _has_labels(raw / "test.csv"))
    file = raw / "train.csv" if raw.is_dir() else raw
    if raw.is_dir() and not file.exists():
        raise UserError(
            f"{raw} holds neither Avazu's train.csv nor train.csv, valid.csv and test.csv of x1 or x4"
        )
    is_x1 = first_line(file).startswith("label,")
    if is_x1 and not repacked:
        raise UserError(f"{file} is of Avazu_x1: give the directory with train.csv, valid.csv and test.csv")
    form: Literal["x1", "x4"] | None = ("x1" if is_x1 else "x4") if repacked else None
    protocol, what = choose_protocol(raw, "Avazu", "train.csv", form, protocol, split)
    files = given_files(raw, what, validation=True) if repacked else {"all": [file]}
    for (path,) in files.values():
        check_header(path, X1_COLUMNS if is_x1 else COLUMNS, what)
    by_time = split == "time"
    rule: Split | None = None
    if not repacked:
        rule = TorchSplit() if protocol == "multi_embedding" else StratifiedSplit()
    if by_time:
        rule = TimeSplit(DEFAULT_FRACTIONS, "timestamp")
    transform = None
    if protocol in ("x4_001", "x4_002"):
        transform = x4
    elif protocol == "multi_embedding":
        transform = multi_embedding
    return prepare_table(
        raw_schema(protocol, by_time),
        files,
        "csv",
        out,
        Card(
            title=f"Avazu, {protocol}",
            source=f"Avazu click-through rate prediction (Kaggle, 2014), {what}; not to be redistributed",
            command=command,
            notes=(MULTI_EMBEDDING_NOTE,) if protocol == "multi_embedding" else (),
            published=None if by_time else PUBLISHED[protocol],
        ),
        split=rule,
        transform=transform,
        md5=PUBLISHED[protocol].md5_of(raw) if repacked else {},
        **engine,
    )


def _has_labels(test: Path) -> bool:
    """Whether a test.csv is a re-packed one: the challenge's has no labels."""
    return test.exists() and first_line(test).startswith(("label,", "id,click,"))


MULTI_EMBEDDING_NOTE = "The study's own code counts values over all rows; here only train counts."
