"""Criteo's display ads: the Kaggle challenge's `train.txt`, the re-packed Criteo_x1 and Criteo_x4, and the terabyte.

The re-packed ones are `train.csv`, `valid.csv` and `test.csv` in a directory, the terabyte `day_0.gz` to `day_23.gz`.
"""

import re
from pathlib import Path
from typing import Any, Literal

import polars as pl

from cetnet.models.schema import Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.folds import LastFileSplit, OrderSplit, StratifiedSplit, TorchSplit
from cetnet.trainer.prepare.engine.layout import DEFAULT_FRACTIONS
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.splits import Split
from cetnet.trainer.prepare.engine.tabular import prepare_table
from cetnet.trainer.prepare.sources import published
from cetnet.trainer.prepare.sources.raw_files import (
    Protocol,
    check_header,
    choose_protocol,
    first_line,
    given_files,
    integers,
)

COUNTS = tuple(f"I{index}" for index in range(1, 14))
IDS = tuple(f"C{index}" for index in range(1, 27))
# rows of the embedding tables C1 to C26 in torchrec's published runs on the terabyte
TERABYTE_TABLES = (
    40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10,
    2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36,
)  # fmt: skip


def multi_embedding(frame: pl.DataFrame) -> pl.DataFrame:
    """Counts in buckets: int(ln(v)^2) above 2, else v - 2; what is missing is a value, NULL.

    As the multi-embedding study's preparation has it (Guo et al. 2024).
    """
    counts = integers(frame, COUNTS)
    v = pl.all()
    buckets = pl.when(v > 2).then(_log_squared(v)).otherwise(v - 2)
    return frame.with_columns(
        *counts.select(buckets.cast(pl.String).fill_null("NULL")), pl.col(IDS).fill_null("NULL")
    )


def x4(frame: pl.DataFrame) -> pl.DataFrame:
    """Counts in buckets: floor(ln(v)^2) above 2, else v; what is missing is null, and so is 0.

    FuxiCTR fills the missing counts of Criteo_x4 with 0 and leaves the filling out of the vocabulary.
    """
    counts = integers(frame, COUNTS)
    v = pl.all()
    buckets = pl.when(v > 2).then(_log_squared(v)).otherwise(v)
    return frame.with_columns(*counts.select(pl.when(buckets != 0).then(buckets).cast(pl.String)))


def _log_squared(v: pl.Expr) -> pl.Expr:
    return v.clip(1).log().pow(2).floor().cast(pl.Int64)


def raw_schema(protocol: Protocol, kaggle: bool) -> RawSchema:
    """39 categorical fields, of x1 13 numbers and 26 fields; `kaggle`: in a file with tabs and without a header."""
    label = "Label" if protocol in ("x4_001", "x4_002") else "label"
    counts: Literal["dense", "categorical"] = "dense" if protocol == "x1" else "categorical"
    return RawSchema(
        label=label,
        features=(
            *(RawFeature(name=name, kind=counts) for name in COUNTS),
            *(RawFeature(name=name, kind="categorical") for name in IDS),
        ),
        min_count={"multi_embedding": 10, "x4_001": 10, "x4_002": 2, "x1": 1}[protocol],
        delimiter="\t" if kaggle else ",",
        header=(label, *COUNTS, *IDS) if kaggle else None,
        quote=None,
    )


def terabyte_schema() -> RawSchema:
    """13 numbers and 26 fields of ids modulo the rows of their tables, as in torchrec's published runs."""
    return RawSchema(
        label="label",
        features=(
            *(RawFeature(name=name, kind="dense", transform="log_from_lowest") for name in COUNTS),
            *(
                RawFeature(name=name, kind="categorical", hash=rows, hash_function="hex")
                for name, rows in zip(IDS, TERABYTE_TABLES, strict=True)
            ),
        ),
        delimiter="\t",
        header=("label", *COUNTS, *IDS),
        quote=None,
    )


def prepare_criteo(
    raw: Path,
    out: Path,
    protocol: Protocol | None = None,
    split: Literal["published", "time"] = "published",
    *,
    command: str,
    **engine: Any,
) -> Schema:
    """Prepare the Kaggle challenge's `train.txt` (or a directory with it), or the re-packed x1 or x4 in a directory.

    Protocols: `multi_embedding` (CETNet's tables 4 and 5: counts in buckets, missing values are values, values
    seen less than 10 times in train become id 0; 80/10/10 by torch's random_split), `x4_001` and `x4_002`
    (Criteo_x4 of BARS: counts in other buckets, min_count 10 and 2, stratified folds), `x1` (Criteo_x1 of BARS:
    scaled counts, min_count 1, only from its own files). Default: that of the files, `multi_embedding` for
    train.txt, `x4_001` for x4. `split="time"`: the rows of train.txt in their order, which is that of time, 80/10/10.

    `engine`: memory, workers, scheduler and overwrite of `prepare_table`, whose errors are raised too. Raises
    UserError for files that are not of Criteo, and for a protocol or split that they can't have.
    """
    repacked = raw.is_dir() and (raw / "train.csv").exists()
    file = raw / ("train.csv" if repacked else "train.txt") if raw.is_dir() else raw
    if not file.exists():
        raise UserError(
            f"{raw} holds neither Criteo's train.txt nor train.csv, valid.csv and test.csv of x1 or x4"
        )
    is_x1 = first_line(file).startswith("label,")
    if not repacked:
        check_kaggle(file)
    form: Literal["x1", "x4"] | None = ("x1" if is_x1 else "x4") if repacked else None
    protocol, what = choose_protocol(raw, "Criteo", "train.txt", form, protocol, split)
    files = given_files(raw, what, validation=True) if repacked else {"all": [file]}
    if repacked:
        for (path,) in files.values():
            check_header(path, ("label" if is_x1 else "Label", *COUNTS, *IDS), what)
    rule: Split | None = None
    if split == "time":
        rule = OrderSplit(DEFAULT_FRACTIONS)
    elif not repacked:
        rule = TorchSplit() if protocol == "multi_embedding" else StratifiedSplit()
    return prepare_table(
        raw_schema(protocol, kaggle=not repacked),
        files,
        "csv",
        out,
        Card(
            title=f"Criteo, {protocol}",
            source=f"Criteo display advertising challenge (Kaggle, 2014), {what}; not to be redistributed",
            command=command,
            notes=NOTES[protocol],
            published=None if split == "time" else PUBLISHED[protocol],
        ),
        split=rule,
        transform=TRANSFORMS[protocol],
        md5=PUBLISHED[protocol].md5_of(raw) if repacked else {},
        **engine,
    )


_X4_NOTE = "Counts v are floor(ln(v)^2) above 2, else v; missing ones and 0 are id 0, as FuxiCTR has them."
TRANSFORMS = {"multi_embedding": multi_embedding, "x1": None, "x4_001": x4, "x4_002": x4}
NOTES: dict[str, tuple[str, ...]] = {
    "multi_embedding": (
        "Counts v are int(ln(v)^2) above 2, else v - 2; what is missing is the value NULL.",
        "The study's own code counts values over all rows; here only train counts.",
    ),
    "x1": (),
    "x4_001": (_X4_NOTE,),
    "x4_002": (_X4_NOTE,),
}
PUBLISHED = {
    "multi_embedding": published.CRITEO,
    "x1": published.CRITEO_X1,
    "x4_001": published.CRITEO_X4_001,
    "x4_002": published.CRITEO_X4_002,
}


def check_kaggle(path: Path) -> None:
    """Raise UserError for a file that doesn't begin as train.txt, or a day of the terabyte."""
    fields = first_line(path).split("\t")
    if len(fields) == 39:
        raise UserError(f"{path} has 39 columns and no label: it is a test file; give the one for training")
    if len(fields) != 40:
        raise UserError(
            f"{path} is not of Criteo: its first line has {len(fields)} columns between tabs, not 40"
        )
    if fields[0] not in ("0", "1"):
        raise UserError(
            f"{path}: the label in line 1 is {fields[0]!r}, not 0 or 1; Criteo's files have no header"
        )


def prepare_criteo_1tb(raw: Path, out: Path, *, command: str, **engine: Any) -> Schema:
    """Prepare `day_0.gz` to `day_23.gz` (or the unpacked `day_0` ...; fewer will do) in a directory.

    The first half of the last day's rows is validation, the second test. Counts x are ln(x - m + 2), m the lowest
    count of the day; ids are hexadecimal int32 modulo the rows of TERABYTE_TABLES; what is missing is 0 in both.
    As torchrec and DLRM have it. `engine`: as in `prepare_criteo`.
    """
    if not raw.is_dir():
        raise UserError(f"{raw} is not a directory: give the one with day_0.gz ... day_23.gz")
    days = {
        int(match[1]): path
        for path in raw.iterdir()
        if (match := re.fullmatch(r"day_(\d+)(\.gz)?", path.name))
    }
    if sorted(days) != list(range(len(days))) or len(days) < 2:
        missing = next((day for day in range(24) if day not in days), 0)
        raise UserError(
            f"{raw} holds no day_{missing}.gz: give a directory with all days from 0, at least two"
        )
    files = [days[day] for day in sorted(days)]
    for file in files:
        check_kaggle(file)
    return prepare_table(
        terabyte_schema(),
        {"all": files},
        "csv",
        out,
        Card(
            title="Criteo 1TB click logs",
            source=f"Criteo 1TB click logs, {len(days)} days; not to be redistributed",
            command=command,
            notes=(f"{len(days)} of 24 days.",),
            published=published.CRITEO_1TB,
        ),
        split=LastFileSplit(),
        **engine,
    )
