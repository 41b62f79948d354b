"""Frappe_x1: app usage in context, from `frappe.{train,validation,test}.libfm.gz` in a directory."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.layout import SPLITS, build_vocabulary, encode, staging, write_dataset
from cetnet.trainer.prepare.sources.published import FRAPPE_X1

FIELDS = tuple(FRAPPE_X1.tables)  # by position in the line


def read_libfm(path: Path) -> pl.DataFrame:
    """A gzip or plain libfm file: `label` (Int8, 0 or 1) and the one-hot id of each field (Int32).

    A line is `1 42:1 1572:1 ...` or `-1 ...`, one id per field in the order of FIELDS. A missing file and
    a line of another form are UserErrors.
    """
    names = ["label", *FIELDS]
    if not path.is_file():
        raise UserError(f"{path} is missing: put the three frappe.*.libfm.gz files into {path.parent}")
    try:
        lines = pl.read_csv(
            path, separator=" ", has_header=False, new_columns=names, infer_schema=False, glob=False
        )
    except pl.exceptions.PolarsError as error:
        detail = str(error).splitlines()[0]
        raise UserError(f"{path} is not in libfm format ({detail}); take the original file") from error
    if lines.columns != names:
        raise UserError(f"{path} has {lines.width - 1} fields a line instead of {len(FIELDS)}")
    frame = lines.select(
        pl.col("label").replace_strict({"1": 1, "-1": 0, "0": 0}, default=None, return_dtype=pl.Int8),
        *(pl.col(name).str.strip_suffix(":1").cast(pl.Int32, strict=False) for name in FIELDS),
    )
    bad = frame.with_row_index("line", offset=1).filter(pl.any_horizontal(pl.all().is_null()))
    if not bad.is_empty():
        row = bad.row(0, named=True)
        column = next(name for name in names if row[name] is None)
        raise UserError(
            f"{path} line {row['line']}: field {column!r} is malformed; expected a label and `id:1` entries"
        )
    return frame


def prepare_frappe(raw: Path, out: Path, overwrite: bool = False, command: str | None = None) -> Schema:
    """Prepare `frappe.{train,validation,test}.libfm.gz` in directory `raw`.

    Columns: `label`; `user_id` (int64, the original one-hot id, the group); the ten categorical fields of
    FIELDS, remapped per field with the vocabulary of the train file. No timestamps. All three files are in
    memory (288,609 rows). `command` is what the card names as its origin. Raises UserError for missing or
    malformed files and for an existing `out`.
    """
    with staging(out, overwrite) as directory:
        frames = {split: read_libfm(raw / f"frappe.{split}.libfm.gz") for split in SPLITS}
        vocabularies = {name: build_vocabulary(frames["train"][name]) for name in FIELDS}
        schema = Schema(
            label="label",
            group="user_id",
            tables={name: len(vocabulary) + 1 for name, vocabulary in vocabularies.items()},
            features=tuple(Feature(name=name, kind="categorical") for name in FIELDS),
        )

        def encoded() -> Iterator[tuple[str, pl.DataFrame]]:
            for split, frame in frames.items():
                ids = (encode(pl.col(name), vocabulary) for name, vocabulary in vocabularies.items())
                yield split, frame.with_columns(pl.col("user").alias("user_id"), *ids)

        return write_dataset(
            directory,
            schema,
            encoded(),
            Card(
                title="Frappe_x1",
                source="Frappe app usage log (Baltrunas et al., 2015), libfm files of Frappe_x1; "
                "not to be redistributed",
                split_rule="the given files, rows in their order",
                command=command or f"prepare_frappe(raw={str(raw)!r}, out={str(out)!r})",
                seed=None,
                published=FRAPPE_X1,
            ),
            total_rows=sum(frame.height for frame in frames.values()),
            vocabularies=vocabularies,
        )
