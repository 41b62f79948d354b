"""Texts that stand for numbers and times in raw files."""

import numpy as np
import polars as pl

from cetnet.trainer.encoder.patterns import INTEGER, LOSSY_FLOAT, WHOLE_FLOAT

_TIME = (
    r"^(?<date>\d{4}-\d\d-\d\d)(?:[T ](?<minute>\d\d:\d\d)(?::(?<second>\d\d)(?:[.,]\d+)?)?"
    r" ?(?:Z|UTC|(?<sign>[+-])(?<hours>\d\d):?(?<minutes>\d\d)?)?)?$"
)
LAST_SECOND = 253_402_300_799  # of the year 9999; in milliseconds it is in 1978
OTHER_UNIT = "seconds, and this is beyond the year 9999: divide milliseconds by 1,000"
TIME = "integer seconds, or a date or time such as 2024-03-01 10:00:00 (UTC, or with +01:00)"


def seconds(texts: pl.Series) -> pl.Series:
    """Int64 seconds since 1970 of texts: numbers, or dates and times in ISO 8601, UTC without an offset.

    Rounded down; what is neither is null.
    """
    numbers = texts.cast(pl.Int64, strict=False)
    if numbers.null_count() == texts.null_count():
        return numbers
    number = texts.str.extract_groups(r"^(?<whole>-?[0-9]+)\.(?<part>[0-9]*)$").struct.unnest()
    below = pl.col("whole").str.starts_with("-") & pl.col("part").str.contains("[1-9]")
    whole = number.select(pl.col("whole").cast(pl.Int64, strict=False) - below.cast(pl.Int64)).to_series()
    parts = texts.str.extract_groups(_TIME).struct.unnest()
    clock = pl.concat_str(
        "date",
        pl.lit(" "),
        pl.col("minute").fill_null("00:00"),
        pl.lit(":"),
        pl.col("second").fill_null("00"),
    )
    offset = 3600 * pl.col("hours").cast(pl.Int64) + 60 * pl.col("minutes").fill_null("0").cast(pl.Int64)
    sign = pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    time = clock.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False).dt.epoch("s")
    times = parts.select(time - (sign * offset).fill_null(0)).to_series()
    return pl.select(pl.coalesce(numbers, whole, times)).to_series().alias(texts.name)


def truth(texts: pl.Expr) -> pl.Expr:
    """Float64 of numbers, true and false; what is neither is null."""
    words = texts.str.to_lowercase().replace_strict({"true": 1.0, "false": 0.0}, default=None)
    return pl.coalesce(texts.cast(pl.Float64, strict=False), words)


def canonical_integers(texts: pl.Series) -> pl.Series:
    """Int64 of texts that are what it is written as: 7, but not 07, which is null."""
    numbers = texts.cast(pl.Int64, strict=False)
    return numbers.set(~(numbers.cast(pl.String) == texts).fill_null(False), None)


def forms(distinct: pl.Series, codes: np.ndarray | None = None) -> dict[str, str]:
    """Examples of an `integer` (17), a `whole` float (17.0) and a `lossy` one (1.7e+18) among sorted distinct texts.

    With `codes` (1 + position in `distinct`, or 0), among those that they stand for.
    """
    first, last = (int(distinct.search_sorted(text, "left")) for text in ("-", ":"))
    numeric = distinct.slice(first, last - first)
    # one is enough, and most columns of integers have it among their first
    integer = _example(distinct, codes, first, numeric.head(1000).str.contains(INTEGER))
    if integer is None:
        integer = _example(distinct, codes, first, numeric.str.contains(INTEGER))
    found = {"integer": integer}
    for form, mark, pattern in (("whole", r"\.", WHOLE_FLOAT), ("lossy", r"[eE]\+", LOSSY_FLOAT)):
        marked = numeric.str.contains(mark)
        found[form] = (
            _example(distinct, codes, first, marked & numeric.str.contains(pattern)) if marked.any() else None
        )
    return {form: text for form, text in found.items() if text is not None}


def _example(distinct: pl.Series, codes: np.ndarray | None, first: int, found: pl.Series) -> str | None:
    """One of the texts `found` from the position `first` on, of those that codes stand for."""
    places = first + found.arg_true().to_numpy().astype(np.int64)
    if codes is not None and len(places):
        marks = np.zeros(len(distinct) + 1, bool)
        marks[places + 1] = True
        places = codes[marks[codes]][:1].astype(np.int64) - 1
    return distinct[int(places[0])] if len(places) else None
