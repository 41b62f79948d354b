"""TaobaoAd: ad impressions of Taobao with what their users looked at, put into carts, marked and bought before.

From raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv of https://tianchi.aliyun.com/dataset/56;
the columns are those of TaobaoAd_x1. The behaviours (22 GB) don't fit into memory: users are dealt into buckets, a
bucket at a time is joined, and the rows are put back into the order of time slice by slice.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from cetnet.models.schema import Schema
from cetnet.trainer.encoder.hashing import mix64
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.convert import conversion
from cetnet.trainer.prepare.engine.layout import list_column
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.tabular import prepare_table
from cetnet.trainer.prepare.engine.workplace import Workplace
from cetnet.trainer.prepare.sources.published import TAOBAO_AD_X1

HISTORY_LENGTH = 50
FIRST_DAY = 1_494_000_000  # 6 May 2017 in China, seconds
HOUR, DAY = 3_600, 86_400
TEST_START = FIRST_DAY + 7 * DAY
BTAGS = {"pv": 1, "cart": 2, "fav": 3, "buy": 4}
# peak memory of `join_bucket` over the bytes of its rows in the files, and of `sort_hours` for a row
TIMES_ITS_BYTES = {"behavior_log.csv": 5, "raw_sample.csv": 60}
ROW_BYTES = 3_000
SLICE_ROWS = 131_072  # at most, but for an hour that has more
ROWS = "rows.parquet"  # of a task

PROFILE = (
    "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level",
    "occupation", "new_user_class_level",
)  # fmt: skip
AD = ("cate_id", "campaign_id", "customer", "brand")


@dataclass(frozen=True)
class Table:
    """A published file: its columns, and which of them may be empty or NULL (they become 0, a value as others)."""

    file: str
    columns: Mapping[str, pl.DataType | type[pl.DataType]]
    missing: tuple[str, ...] = ()
    words: Mapping[str, Mapping[str, int]] | None = None


IDS = pl.Int64
SAMPLE = Table(
    "raw_sample.csv",
    {"user": IDS, "time_stamp": IDS, "adgroup_id": IDS, "pid": pl.String, "nonclk": pl.Int8, "clk": pl.Int8},
)
BEHAVIOR = Table(
    "behavior_log.csv",
    {"user": IDS, "time_stamp": IDS, "btag": pl.Int8, "cate": pl.Int32, "brand": pl.Int32},
    missing=("cate", "brand"),
    words={"btag": BTAGS},
)
ADS = Table(
    "ad_feature.csv",
    {"adgroup_id": IDS, **dict.fromkeys(AD, pl.Int32), "price": pl.Float64},
    missing=("brand",),
)
USERS = Table("user_profile.csv", {"userid": IDS, **dict.fromkeys(PROFILE, pl.Int32)}, missing=PROFILE)


# -------------------------------------------------------------------------------------------------- reading


def byte_ranges(path: Path, table: Table, size: int) -> list[tuple[int, int]]:
    """Ranges of about `size` bytes that end with a line, of everything below the header.

    Blanks around names don't count. A file that is missing, empty or has other columns is a UserError.
    """
    try:
        with path.open("rb") as file:
            header = file.readline()
            names = [name.strip() for name in header.decode(errors="replace").split(",")]
            if names != list(table.columns):
                raise UserError(
                    f"{path}: expected the columns {','.join(table.columns)}; found {header[:200]!r}: take the "
                    "original file"
                )
            end = os.fstat(file.fileno()).st_size
            cuts = [file.tell()]
            while cuts[-1] < end:
                file.seek(min(end, cuts[-1] + size) - 1)
                file.readline()
                cuts.append(file.tell())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(cuts) == 1:
        raise UserError(f"{path} has no rows; take the original file")
    return list(pairwise(cuts))


def read_range(path: Path, table: Table, start: int, end: int) -> pl.DataFrame:
    """The typed rows of a range; a value that can't be is a UserError with its line."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    commas = len(table.columns) - 1
    if data.count(b",") != commas * (data.count(b"\n") + (not data.endswith(b"\n"))):
        _check_lines(path, start, data, commas)
    names = dict.fromkeys(table.columns, pl.String)
    try:
        frame = pl.read_csv(data, has_header=False, schema=names, quote_char=None)
    except pl.exceptions.PolarsError as error:
        # One too long and one too short have the right number together.
        _check_lines(path, start, data, commas)
        raise UserError(f"{path}: not readable as CSV: {str(error).splitlines()[0]}") from error
    typed = []
    for name, dtype in table.columns.items():
        text = pl.col(name).str.strip_chars()
        if table.words and name in table.words:
            text = text.replace_strict(table.words[name], default=None, return_dtype=dtype)
        if name in table.missing:
            text = pl.when(text.is_in(["", "NULL", "null"])).then(pl.lit("0")).otherwise(text).fill_null("0")
        typed.append(text.cast(dtype, strict=False).alias(name))
    values = frame.select(typed)
    for name in table.columns:
        if values[name].null_count():
            row = int(values[name].is_null().arg_max() or 0)
            raise UserError(
                f"{path} line {_line(path, start) + row}: column {name!r} cannot be {frame[name][row]!r}: take the "
                "original file"
            )
    return values


def _check_lines(path: Path, start: int, data: bytes, commas: int) -> None:
    """UserError for the first line of more or fewer values, which polars would fill up."""
    for number, line in enumerate(data.splitlines(), start=_line(path, start)):
        if (found := line.count(b",")) != commas:
            raise UserError(
                f"{path} line {number}: {found + 1} values, not {commas + 1}: take the original file"
            )


def _line(path: Path, offset: int) -> int:
    """The number of the line that begins at a byte."""
    number = 1
    with path.open("rb") as file:
        while offset > 0 and (block := file.read(min(offset, 1 << 24))):
            number += block.count(b"\n")
            offset -= len(block)
    return number


# ---------------------------------------------------------------------------------------------------- tasks


def deal_rows(folder: Path, path: Path, table: Table, chunk: int, start: int, end: int, buckets: int) -> None:
    """Rows of a range by bucket of their users, in the order of the file, each bucket a row group."""
    frame = read_range(path, table, start, end).with_columns(
        (pl.int_range(pl.len(), dtype=pl.Int64) + (chunk << 32)).alias("#row")
    )
    bucket = (mix64(frame["user"].to_numpy()) % np.uint64(buckets)).astype(np.int32)
    frame = frame.with_columns(pl.Series("#bucket", bucket)).sort("#bucket", maintain_order=True)
    _write_groups(folder, frame, "#bucket")


def read_small_file(folder: Path, path: Path, table: Table, size: int) -> None:
    """A small file, of whose lines for one key the first counts."""
    frame = pl.concat([read_range(path, table, start, end) for start, end in byte_ranges(path, table, size)])
    frame = frame.unique(next(iter(table.columns)), keep="first", maintain_order=True)
    frame.write_parquet(folder / ROWS)


def join_bucket(
    folder: Path, bucket: int, samples: Sequence[Path], behaviors: Sequence[Path], ads: Path, users: Path
) -> None:
    """A bucket's impressions with profile, ad and history in the order of time, a row group an hour."""
    shown = _bucket(samples, bucket).join(
        pl.read_parquet(users / ROWS, glob=False),
        left_on="user",
        right_on="userid",
        how="inner",
        maintain_order="left",
    )
    shown = shown.join(
        pl.read_parquet(ads / ROWS, glob=False), on="adgroup_id", how="left", maintain_order="left"
    )
    shown = shown.sort("time_stamp", "#row")
    log = _bucket(behaviors, bucket).sort("user", "time_stamp", "#row")
    first, lengths = last_before(shown, log, HISTORY_LENGTH)
    event = np.arange(lengths.sum()) + np.repeat(first - (lengths.cumsum() - lengths), lengths)
    history = {name: log[name].replace(0, None).gather(event) for name in ("cate", "brand", "btag")}
    rows = shown.select(
        "clk",
        "time_stamp",
        pl.col("user").alias("group_id"),
        pl.col("user").alias("userid"),
        *PROFILE,
        "adgroup_id",
        *(pl.col(name).fill_null(0) for name in AD),
        "pid",
        pl.lit(BTAGS["pv"], pl.Int8).alias("btag"),
        "price",
        *(list_column(values, lengths).alias(f"{name}_his") for name, values in history.items()),
        "#row",
        (pl.col("time_stamp") // HOUR).alias("#hour"),
    )
    _write_groups(folder, rows, "#hour")


def last_before(shown: pl.DataFrame, log: pl.DataFrame, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each impression the first and the number of its user's last `length` behaviours strictly before it.

    `log` is sorted by user and time_stamp; the result are int64 [impressions], positions in `log`.
    """
    users = np.unique(log["user"].to_numpy())
    code = np.searchsorted(users, shown["user"].to_numpy())
    unknown = ~np.isin(shown["user"].to_numpy(), users)
    times, when = log["time_stamp"].to_numpy(), shown["time_stamp"].to_numpy()
    low = int(min([*times[:1], times.min(initial=2**62), when.min(initial=2**62)]))
    span = int(max(times.max(initial=low), when.max(initial=low))) - low + 1
    key = np.searchsorted(users, log["user"].to_numpy()) * span + (times - low)
    begin = np.searchsorted(key, code * span)
    end = np.searchsorted(key, code * span + (when - low))
    first = np.maximum(begin, end - length)
    lengths = np.where(unknown, 0, end - first)
    return first, lengths


def sort_hours(folder: Path, first_hour: int, last_hour: int, joined: Sequence[Path]) -> None:
    """The rows of these hours of all buckets, in the order of time and then of the file."""
    hours = pl.col("#hour").is_between(first_hour, last_hour)
    rows = pl.scan_parquet(_files(joined), glob=False).filter(hours).collect().sort("time_stamp", "#row")
    rows.drop("#row", "#hour").write_parquet(folder / ROWS)


def _write_groups(folder: Path, frame: pl.DataFrame, column: str) -> None:
    """Write a frame sorted by the column, a row group for each of its values."""
    table = frame.to_arrow()
    values = frame[column].to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(values)) + 1), len(values)]
    with pq.ParquetWriter(folder / ROWS, table.schema, compression="zstd") as writer:
        for start, end in pairwise(bounds):
            writer.write_table(table.slice(start, end - start))


def _bucket(parts: Sequence[Path], bucket: int) -> pl.DataFrame:
    return (
        pl.scan_parquet(_files(parts), glob=False)
        .filter(pl.col("#bucket") == bucket)
        .drop("#bucket")
        .collect()
    )


def _files(folders: Sequence[Path]) -> list[Path]:
    return [folder / ROWS for folder in folders]


# -------------------------------------------------------------------------------------------------- command


def prepare_taobao_ad(
    raw: Path,
    out: Path,
    split: Literal["clean", "bars"] = "clean",
    command: str | None = None,
    **engine: Any,
) -> Schema:
    """Prepare directory `raw` with raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv.

    An impression's history are its user's last HISTORY_LENGTH behaviours strictly before it, those of one second
    in the order of the file. Impressions of users without a profile are dropped. Days are China's: 13 May is
    test. `split="clean"`: 12 May is validation, 6 to 11 May train. `split="bars"`: 6 to 12 May are train, and
    validation is the test rows again, as in published results: what is tuned on it is tuned on test.

    Columns: those of TaobaoAd_x1 and `time_stamp` (seconds); `group_id` is the user. Where a profile or an ad's brand
    is empty, the value is 0; behaviours' unknown brands and categories are id 0. Values seen less than 10 times in
    train become id 0. `btag` is 1 for looking, 2 cart, 3 favourite, 4 buying; the impression's own is always 1. Rows
    are in the order of time, equal ones in that of raw_sample.csv.

    `engine`: memory, workers, scheduler and overwrite of `prepare_table`, and so is what they mean; besides, each
    process holds ad_feature and user_profile, some 200 MB. Raises UserError for missing or malformed files and for an
    existing `out`.
    """
    paths = {table.file: raw / table.file for table in (SAMPLE, BEHAVIOR, ADS, USERS)}
    with conversion(out, list(paths.values()), {"split": split}, engine) as place:
        samples, joined = _join_all(place, paths)
        files = _order_all(place, joined, split)
        impressions, kept, unknown = _counts(samples, joined)
        return prepare_table(
            raw_schema().model_copy(update={"timestamp": "time_stamp"}),
            files,
            "parquet",
            out,
            Card(
                title="TaobaoAd",
                source="Ad Display/Click Data on Taobao.com (Alimama, 2018); not to be redistributed",
                command=command or f"prepare_taobao_ad(raw={str(raw)!r}, out={str(out)!r}, split={split!r})",
                split_rule=RULES[split],
                notes=(
                    f"{impressions - kept:,} of {impressions:,} impressions are dropped: their users have no "
                    "profile.",
                    f"{unknown:,} impressions are of ads that ad_feature.csv lacks.",
                    f"Histories are the last {HISTORY_LENGTH} behaviours strictly before the impression.",
                    "0 stands for an empty value of a profile and for an ad without a brand, and is a value as "
                    "others.",
                ),
                published=TAOBAO_AD_X1 if split == "bars" else TAOBAO_AD_X1.of_test(),
            ),
            **engine,
        )


def _join_all(place: Workplace, paths: Mapping[str, Path]) -> tuple[list[Path], list[Path]]:
    """Impressions dealt into buckets by user, a folder a range of raw_sample.csv; and joined, a folder a bucket."""
    sizes = place.sizes
    ranges = {
        table.file: byte_ranges(paths[table.file], table, sizes.chunk_bytes) for table in (SAMPLE, BEHAVIOR)
    }
    small = {table.file: (1, (paths[table.file], table, sizes.chunk_bytes)) for table in (ADS, USERS)}
    ads, users = place.run("small", "files", read_small_file, small)
    needed = sum(paths[file].stat().st_size * times for file, times in TIMES_ITS_BYTES.items())
    buckets = 1 + needed // sizes.bucket_bytes

    def deal(table: Table) -> list[Path]:
        tasks = {
            f"{chunk:06d}": ((end - start) >> 20, (paths[table.file], table, chunk, start, end, buckets))
            for chunk, (start, end) in enumerate(ranges[table.file])
        }
        return place.run(f"bucket_{table.file}", "MB", deal_rows, tasks)

    samples, behaviors = deal(SAMPLE), deal(BEHAVIOR)
    tasks = {f"{bucket:06d}": (1, (bucket, samples, behaviors, ads, users)) for bucket in range(buckets)}
    return samples, place.run("join", "buckets", join_bucket, tasks)


def _order_all(place: Workplace, joined: Sequence[Path], split: str) -> dict[str, list[Path]]:
    """The files of each split, whose rows are in the order of time."""
    slice_rows = min(SLICE_ROWS, place.sizes.bucket_bytes // ROW_BYTES)
    slices = list(time_slices(joined, split, slice_rows))
    tasks = {f"{first}": (1, (first, last, joined)) for _, first, last in slices}
    files: dict[str, list[Path]] = {}
    for (name, _, _), folder in zip(slices, place.run("order", "slices", sort_hours, tasks), strict=True):
        files.setdefault(name, []).append(folder / ROWS)
    if split == "bars":
        files["validation"] = files["test"]
    return files


RULES = {
    "clean": "by day in China: 13 May 2017 is test, 12 May validation, 6 to 11 May train; rows in time order",
    "bars": "by day in China: 13 May 2017 is test, 6 to 12 May train; rows in time order; validation is the test "
    "rows again, so what is tuned on it is tuned on test",
}


def raw_schema() -> RawSchema:
    """The columns of TaobaoAd_x1, with its thresholds."""
    ids = ("userid", *PROFILE, "adgroup_id", *AD, "pid", "btag")
    tables = {"cate_his": "cate_id", "brand_his": "brand", "btag_his": "btag"}
    return RawSchema(
        label="clk",
        group="group_id",
        min_count=10,
        features=(
            *(RawFeature(name=name, kind="categorical") for name in ids),
            RawFeature(name="price", kind="dense"),
            *(
                RawFeature(name=name, kind="sequence", table=table, max_length=HISTORY_LENGTH)
                for name, table in tables.items()
            ),
        ),
    )


def time_slices(joined: Sequence[Path], split: str, slice_rows: int) -> Iterator[tuple[str, int, int]]:
    """(split, first hour, last hour) in order, of whole hours with about `slice_rows` rows."""
    counts = pl.scan_parquet(_files(joined), glob=False).group_by("#hour").len("rows").sort("#hour")
    hours: dict[str, list[tuple[int, int]]] = {"train": [], "validation": [], "test": []}
    for hour, rows in counts.collect(engine="streaming").rows():
        held = split == "clean" and hour * HOUR >= TEST_START - DAY
        hours["test" if hour * HOUR >= TEST_START else "validation" if held else "train"].append((hour, rows))
    for name, of_split in hours.items():
        while of_split:
            total = np.cumsum([rows for _, rows in of_split])
            count = max(1, int(np.searchsorted(total, slice_rows, side="right")))
            yield name, of_split[0][0], of_split[count - 1][0]
            of_split = of_split[count:]


def _counts(samples: Sequence[Path], joined: Sequence[Path]) -> tuple[int, int, int]:
    """Impressions in the file, those that are kept, and those of them whose ad is unknown."""
    rows = [sum(pq.read_metadata(path).num_rows for path in _files(folders)) for folders in (samples, joined)]
    prices = pl.scan_parquet(_files(joined), glob=False).select(pl.col("price").null_count())
    return rows[0], rows[1], prices.collect(engine="streaming").item()
