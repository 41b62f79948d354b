"""EB-NeRD: news recommendation logs of Ekstra Bladet; one row per (impression, shown article).

From `{train,validation}/{behaviors,history}.parquet` in a directory, a week each.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import polars as pl

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.layout import (
    SPLITS,
    build_vocabulary,
    encode,
    hashed_uniform,
    random_split,
    staging,
    time_cuts,
    time_split,
    write_dataset,
)

WEEKS = ("train", "validation")
IMPRESSIONS_PER_CHUNK = 16_384  # about 200,000 rows
LIST_LENGTH_BREAKS = (5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 25, 30, 40, 60)  # a bucket ends with its break
CONTEXT = ("user", "device", "sso", "gender", "age", "postcode", "subscriber", "hour", "list_length")
DENSE = ("log_clicks", "log_exposures", "log_ctr")
PRIOR_CLICKS, PRIOR_EXPOSURES = 1.0, 10.0  # a running CTR starts near the log's 9 %
CLICKED = pl.col("article").is_in(pl.col("clicked"))
RULES = {
    "random": "by impression at random (hash of impression_id and seed), 80/10/10; impressions shuffled on disk",
    "time": "by time: the last 10 % of the impressions are test, the 10 % before them validation; rows in time order",
}


def read_impressions(raw: Path) -> pl.DataFrame:
    """Impressions of both weeks in time order.

    Columns: `week` (str), `impression_id`, `timestamp` (Int64, seconds), the CONTEXT values as integers
    (null where missing), `shown` and `clicked` (lists of article ids). Equal times are ordered by
    impression_id. A missing file or column is a UserError.
    """
    hour = pl.col("impression_time").dt.hour()
    shown = pl.col("article_ids_inview")
    weeks = [
        _read(raw / week / "behaviors.parquet").select(
            pl.lit(week).alias("week"),
            pl.col("impression_id").cast(pl.Int64),
            pl.col("impression_time").dt.epoch("s").alias("timestamp"),
            pl.col("user_id").cast(pl.Int64).alias("user"),
            pl.col("device_type").alias("device"),
            pl.col("is_sso_user").cast(pl.Int8).alias("sso"),
            "gender",
            "age",
            "postcode",
            pl.col("is_subscriber").cast(pl.Int8).alias("subscriber"),
            hour.alias("hour"),
            pl.lit(pl.Series(LIST_LENGTH_BREAKS)).search_sorted(shown.list.len()).alias("list_length"),
            shown.alias("shown"),
            pl.col("article_ids_clicked").alias("clicked"),
        )
        for week in WEEKS
    ]
    return pl.concat([_collect(week, raw) for week in weeks]).sort("timestamp", "impression_id")


def read_histories(raw: Path, length: int) -> pl.DataFrame:
    """The last `length` articles each user read before each week: `week`, `user`, `history` (oldest first).

    Reads at or after the week's first impression are dropped, so that a history never reaches into the
    week it is used in. One row per read article is in memory. A missing file or column is a UserError.
    """
    weeks = []
    for week in WEEKS:
        start = _collect(
            _read(raw / week / "behaviors.parquet").select(pl.col("impression_time").min()), raw
        ).item()
        reads = _read(raw / week / "history.parquet").select(
            pl.lit(week).alias("week"),
            pl.col("user_id").cast(pl.Int64).alias("user"),
            pl.col("impression_time_fixed").alias("time"),
            pl.col("article_id_fixed").alias("history"),
        )
        weeks.append(
            _collect(reads.explode("time", "history"), raw)
            .filter(pl.col("time") < start)
            .sort("time", maintain_order=True)
            .group_by("week", "user", maintain_order=True)
            .agg(pl.col("history").tail(length))
        )
    return pl.concat(weeks)


def causal_counts(rows: pl.DataFrame) -> pl.DataFrame:
    """Dense features of an (article, timestamp) from strictly earlier impressions only.

    `rows` has `article`, `timestamp`, `label`, one row per shown article. The result has one row per
    distinct (article, timestamp) with `log_clicks` = log1p(clicks so far), `log_exposures` =
    log1p(exposures so far) and `log_ctr` = log of the click rate so far, smoothed with 1 click in 10
    exposures. Impressions of the same second do not see each other.
    """
    seconds = (
        rows.group_by("article", "timestamp")
        .agg(pl.len().cast(pl.Int64).alias("exposures"), pl.col("label").cast(pl.Int64).sum().alias("clicks"))
        .sort("article", "timestamp")
        .with_columns(
            (pl.col(name).cum_sum() - pl.col(name)).over("article") for name in ("exposures", "clicks")
        )
    )
    rate = (pl.col("clicks") + PRIOR_CLICKS) / (pl.col("exposures") + PRIOR_EXPOSURES)
    return seconds.select(
        "article",
        "timestamp",
        pl.col("clicks").log1p().alias("log_clicks"),
        pl.col("exposures").log1p().alias("log_exposures"),
        rate.log().alias("log_ctr"),
    )


def prepare_ebnerd(
    raw: Path,
    out: Path,
    split: Literal["random", "time"] = "random",
    history_length: int = 50,
    dense: bool = False,
    overwrite: bool = False,
    seed: int = 1,
    command: str | None = None,
) -> Schema:
    """Prepare directory `raw` with `{train,validation}/{behaviors,history}.parquet` (both weeks are used).

    `split="random"`: impressions fall 80/10/10 by a seeded hash of their id, and lie shuffled on disk.
    `split="time"`: the last 10 % of the impressions by time are test, the 10 % before are validation, rows
    in time order. An impression is never divided.

    Columns: `label` (clicked); `impression_id` (int64, the group); `timestamp` (int64, seconds, UTC as
    logged); categorical `article` and CONTEXT (`hour` of the day, `list_length` = bucketed number of
    articles shown); sequence `history`: the last `history_length` articles the user had read before the
    week, in the table of `article`; with `dense` also DENSE (see `causal_counts`).

    In memory: all impressions with their lists and one row per read article; `dense` adds one row per
    shown article. `command` is what the card names as its origin. Raises UserError for missing files or
    columns and for an existing `out`.
    """
    with staging(out, overwrite) as directory:
        impressions = _divided(read_impressions(raw), split, seed)
        histories = read_histories(raw, history_length)
        train = impressions.filter(pl.col("split") == 0)
        vocabularies = _vocabularies(train, histories)
        schema = Schema(
            label="label",
            group="impression_id",
            timestamp="timestamp",
            tables={name: len(vocabulary) + 1 for name, vocabulary in vocabularies.items()},
            features=(
                *(Feature(name=name, kind="categorical") for name in ("user", "article", *CONTEXT[1:])),
                Feature(name="history", kind="sequence", table="article", max_length=history_length),
                *(Feature(name=name, kind="dense") for name in DENSE if dense),
            ),
        )
        exploded = impressions.lazy().with_columns(pl.col("shown").alias("article")).explode("article")
        counts = None
        if dense:
            counts = causal_counts(exploded.select("article", "timestamp", label=CLICKED).collect())
        if split == "random":  # a second hash of the id orders the impressions
            order = pl.Series("order", hashed_uniform(impressions["impression_id"].to_numpy(), seed + 1))
            impressions = impressions.with_columns(order).sort("order")
        known = pl.col("article").is_in(train["shown"].explode().unique().implode())
        test_known = exploded.filter(pl.col("split") == 2).select(known.mean()).collect().item()
        return write_dataset(
            directory,
            schema,
            _rows(impressions, histories, counts, vocabularies),
            Card(
                title="EB-NeRD",
                source="EB-NeRD (Ekstra Bladet, RecSys Challenge 2024), behaviors and history of both weeks; "
                "not to be redistributed",
                command=command
                or f"prepare_ebnerd(raw={str(raw)!r}, out={str(out)!r}, split={split!r}, "
                f"history_length={history_length}, dense={dense}, seed={seed})",
                split_rule=RULES[split],
                seed=seed if split == "random" else None,
                notes=(
                    f"{test_known:.1%} of the test rows show an article that is also shown in train.",
                    "A history ends before the week of its impression; the second week's histories hold "
                    "clicks of the first week, so under the random split a train row may know what an "
                    "earlier test impression clicked, as a production model would.",
                    "The position in the shown list is not a feature.",
                ),
            ),
            total_rows=int(impressions["shown"].list.len().sum()),
            vocabularies=vocabularies,
        )


def _divided(impressions: pl.DataFrame, split: Literal["random", "time"], seed: int) -> pl.DataFrame:
    """The impressions with `split`, the index into SPLITS."""
    if split == "time":
        cuts = time_cuts(impressions["timestamp"])
        return impressions.with_columns(time_split(impressions["timestamp"], cuts))
    return impressions.with_columns(random_split(impressions["impression_id"], seed))


def _vocabularies(train: pl.DataFrame, histories: pl.DataFrame) -> dict[str, pl.Series]:
    """Those of CONTEXT, and of the articles that train shows or has in its histories."""
    read = histories.join(train.select("week", "user").unique(), on=["week", "user"])
    articles = pl.concat([train["shown"].explode(), read["history"].explode()])
    return {name: build_vocabulary(train[name]) for name in CONTEXT} | {"article": build_vocabulary(articles)}


def _rows(
    impressions: pl.DataFrame,
    histories: pl.DataFrame,
    counts: pl.DataFrame | None,
    vocabularies: Mapping[str, pl.Series],
) -> Iterator[tuple[str, pl.DataFrame]]:
    """(split, encoded rows), IMPRESSIONS_PER_CHUNK impressions at a time; `counts` are dense features."""
    histories = histories.with_columns(
        pl.col("history").list.eval(encode(pl.element(), vocabularies["article"]))
    )
    for number, name in enumerate(SPLITS):
        part = impressions.filter(pl.col("split") == number)
        for chunk in part.iter_slices(IMPRESSIONS_PER_CHUNK):
            frame = (
                chunk.join(histories, on=["week", "user"], how="left", maintain_order="left")
                .with_columns(pl.col("history").fill_null([]), pl.col("shown").alias("article"))
                .explode("article")
                .with_columns(CLICKED.cast(pl.Int8).alias("label"))
            )
            if counts is not None:
                frame = frame.join(counts, on=["article", "timestamp"], how="left", maintain_order="left")
            ids = (encode(pl.col(column), vocabulary) for column, vocabulary in vocabularies.items())
            yield name, frame.with_columns(ids)


def _read(path: Path) -> pl.LazyFrame:
    if not path.is_file():
        raise UserError(f"{path} is missing: give the directory that holds train/ and validation/ of EB-NeRD")
    return pl.scan_parquet(path, glob=False)


def _collect(frame: pl.LazyFrame, raw: Path) -> pl.DataFrame:
    try:
        return frame.collect()
    except pl.exceptions.ColumnNotFoundError as error:
        column = str(error).split("\n")[0].strip()
        raise UserError(f"{raw} lacks column {column}: give the original EB-NeRD files") from error
