"""What the raw columns of a dataset are (`RawSchema`, a YAML file), and how their values are read and checked."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from cetnet.models.names import FeatureName, TableName
from cetnet.models.schema import Feature, FeatureKind, Schema
from cetnet.models.strict import Strict
from cetnet.trainer.encoder.hashing import hash_text
from cetnet.trainer.encoder.patterns import LOSSY_FLOAT, WHOLE_FLOAT, written_list
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import UsablePath
from cetnet.trainer.prepare.engine.values import (
    INTEGER,
    LAST_SECOND,
    OTHER_UNIT,
    TIME,
    seconds,
    truth,
)
from cetnet.trainer.yaml_files import read_model


class RawFeature(Strict):
    """One raw column: a feature as in `cetnet.models.schema`, whose ids may still be any values."""

    name: FeatureName = Field(
        description="Column name in the prepared files, and in the raw ones unless `column` is set."
    )
    column: str | None = Field(
        None, min_length=1, description="Column name in the raw files. Default: the name."
    )
    kind: FeatureKind
    table: TableName | None = Field(
        None, description="Table, and vocabulary, of the values. Default: the name."
    )
    max_length: int | None = Field(None, description="Sequences only: how many values are kept.")
    keep: Literal["recent", "oldest"] = Field("recent", description="Which of them; lists are oldest first.")
    behavior: str | None = Field(None, description="Sequences only: as in `schema.yaml`.")
    min_count: int | None = Field(
        None, gt=0, description="Values seen less often in train, in the whole table, become id 0."
    )
    hash: int | None = Field(
        None, gt=1, description="Rows of the table: ids are hashes of the values, and no vocabulary is built."
    )
    hash_function: Literal["text", "hex"] = Field(
        "text",
        description="text: 1 + a 64-bit hash of the text modulo N - 1, so that 0 is left to missing values. "
        "hex: the hexadecimal number as a signed int32 modulo N, as TorchRec reads Criteo's 1 TB set.",
    )
    transform: Literal["none", "log1p", "standardize", "log_from_lowest"] = Field(
        "none",
        description="Dense only. log1p: sign(x) log(1 + |x|). standardize: mean 0 and standard deviation 1 over "
        "train. log_from_lowest: log(x - m + 2), m the lowest value of all such features in the file, where missing "
        "values count as 0, as TorchRec reads Criteo's 1 TB set.",
    )

    @model_validator(mode="after")
    def _check(self) -> "RawFeature":
        if self.kind == "dense" and self.min_count is not None:
            raise ValueError(f"feature {self.name!r} is dense and cannot have a min_count")
        if self.hash is not None and (self.kind == "dense" or self.min_count is not None):
            raise ValueError(f"feature {self.name!r}: hash belongs to ids, and excludes min_count")
        if self.hash is None and self.hash_function != "text":
            raise ValueError(f"feature {self.name!r}: hash_function belongs to hash")
        if self.kind != "dense" and self.transform != "none":
            raise ValueError(f"feature {self.name!r} is not dense and cannot have a transform")
        return self

    @property
    def raw(self) -> str:
        """Column name in the raw files."""
        return self.column or self.name


class RawSchema(Strict):
    """What the raw columns are: `Schema` before vocabularies, and how a CSV file is written."""

    label: str = Field(description="0 and 1, false and true, or -1 and 1.")
    group: str | None = Field(
        None, description="Any values; they become integers. Rows without one are in no group."
    )
    timestamp: str | None = Field(
        None, description="Integer seconds, or dates and times; UTC without an offset."
    )
    weight: str | None = None
    tables: dict[TableName, int | None] = Field(
        {}, description="Rows of tables whose values are ids already; null or left out: build a vocabulary."
    )
    pretrained: dict[TableName, UsablePath] = Field(
        {},
        description="Files of given vectors (.npy, .parquet, .h5; see `vectors.open_vectors`) by table, whose "
        "vocabulary are their keys. Paths are relative to this file.",
    )
    features: tuple[RawFeature, ...] = Field(min_length=1)
    min_count: int = Field(1, gt=0, description="For tables none of whose features has its own.")
    separator: str = Field("|", min_length=1, description="Between the values of a list in CSV.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="Between the columns of CSV.")
    header: tuple[str, ...] | None = Field(
        None, description="CSV column names, for files without a line of them."
    )
    quote: str | None = Field(
        '"', min_length=1, max_length=1, description="Around CSV values; null: there are none."
    )
    escape: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="Before a character, such as a quote, that stands for itself in CSV: `\\` in files of Spark, "
        "Hive and MySQL; null: quotes inside quotes are doubled.",
    )
    encoding: str = Field("utf-8", description="Of CSV: any that Python knows, such as cp1252 or utf-16.")
    null_values: tuple[str, ...] = Field(
        (),
        description="Texts that stand for missing values in any column, and in lists, such as `\\N` and NA.",
    )
    whole_floats: Literal["refuse", "integer", "text"] = Field(
        "refuse",
        description="Ids written as 17.0, as pandas does where values are missing. refuse: where the table has "
        "ids written as 17, too; integer: read as 17; text: another id than 17.",
    )

    @model_validator(mode="after")
    def _check(self) -> "RawSchema":
        for table in self.vocabulary_tables:
            counts = {f.min_count for f in self.features_of(table) if f.min_count}
            if len(counts) > 1:
                raise ValueError(f"features of table {table!r} have different min_counts")
        for feature in self.features:
            same = [other.hash for other in self.features if _table(other) == _table(feature)]
            if feature.kind != "dense" and len(set(same)) > 1:
                raise ValueError(f"features of table {_table(feature)!r} have different hashes")
            if feature.hash is not None and self.tables.get(_table(feature)) is not None:
                raise ValueError(f"table {_table(feature)!r} has both hash and given rows")
        for table in self.pretrained:
            if table not in self.vocabulary_tables or any(f.min_count for f in self.features_of(table)):
                raise ValueError(
                    f"pretrained {table!r}: no feature has values of this table, or rows or min_count are given too"
                )
        assert self.draft  # its own checks
        for feature in self.features:
            if feature.raw in (self.label, self.weight):
                raise ValueError(
                    f"feature {feature.name!r} reads column {feature.raw!r}, which is the label or the weight; a "
                    "column means one thing: leave one of the two out"
                )
        return self

    @model_validator(mode="after")
    def _check_csv(self) -> "RawSchema":
        marks = {"delimiter": self.delimiter, "quote": self.quote, "escape": self.escape}
        for key, mark in marks.items():
            if mark is not None and (not mark.isascii() or mark in "\0\r\n"):
                raise ValueError(f"{key} {mark!r} must be one ASCII character, and no end of a line")
        if self.escape is not None and self.escape == self.quote:
            raise ValueError("escape is the quote: leave it out, quotes inside quotes are doubled")
        if self.delimiter in (self.quote, self.escape):
            raise ValueError(f"delimiter {self.delimiter!r} is the quote or the escape, too")
        try:
            b"text".decode(self.encoding, "ignore")
        except (LookupError, ValueError):
            raise ValueError(
                f"encoding {self.encoding!r} is none that Python knows, such as cp1252"
            ) from None
        return self

    @property
    def raw_columns(self) -> list[str]:
        """Columns that are read of the raw files."""
        roles = [self.label, self.group, self.timestamp, self.weight]
        return [name for name in (*roles, *(feature.raw for feature in self.features)) if name is not None]

    @property
    def vocabulary_tables(self) -> list[str]:
        """Tables whose rows are neither given nor hashed to, in the order of the features."""
        ids = (feature for feature in self.features if feature.kind != "dense" and feature.hash is None)
        tables = dict.fromkeys(_table(feature) for feature in ids)
        return [table for table in tables if self.tables.get(table) is None]

    def features_of(self, table: str) -> list[RawFeature]:
        """The features that look up a table."""
        return [feature for feature in self.features if feature.kind != "dense" and _table(feature) == table]

    @property
    def draft(self) -> Schema:
        """The prepared schema with the names of all columns, but one row in each vocabulary."""
        return self.prepared(dict.fromkeys(self.vocabulary_tables, 1))

    def table_min_count(self, table: str) -> int:
        """The min_count of the features of a table, or the general one."""
        return next((f.min_count for f in self.features_of(table) if f.min_count), self.min_count)

    def prepared(self, rows: Mapping[str, int], vector_sizes: Mapping[str, int] | None = None) -> Schema:
        """The schema of the prepared files, given the rows of the tables without given ones, and vectors' sizes.

        A group or timestamp that is also a feature, or each other, becomes a column of its own, `<name>_group` or
        `<name>_timestamp`, because the feature's column holds ids; where that name is taken, `<name>_group_2`, ...
        """
        features = {feature.name for feature in self.features}
        taken = features | {self.label, self.weight, self.group, self.timestamp}
        group, timestamp = self.group, self.timestamp
        if group is not None and group in features | {timestamp}:
            group = _free(f"{group}_group", taken)
        if timestamp is not None and timestamp in features:
            timestamp = _free(f"{timestamp}_timestamp", taken | {group})
        return Schema(
            label=self.label,
            group=group,
            timestamp=timestamp,
            weight=self.weight,
            tables={name: size for name, size in self.tables.items() if size is not None}
            | {_table(f): f.hash for f in self.features if f.hash is not None}
            | dict(rows),
            pretrained=dict.fromkeys(self.pretrained, 1) | dict(vector_sizes or {}),
            features=tuple(
                Feature(name=f.name, kind=f.kind, table=f.table, max_length=f.max_length, behavior=f.behavior)
                for f in self.features
            ),
        )

    @classmethod
    def load(cls, path: Path) -> "RawSchema":
        """Read and check a raw schema; every mistake in it is a UserError."""
        spec = read_model(path, cls)
        paths = {table: path.parent / vectors for table, vectors in spec.pretrained.items()}
        return spec.model_copy(update={"pretrained": paths})


def _table(feature: RawFeature) -> str:
    return feature.table or feature.name


def _free(name: str, taken: set[str | None]) -> str:
    """The name, with a number if it is taken."""
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)


class Check(NamedTuple):
    """Rows that are mistakes, and what should be there."""

    bad: pl.Expr
    expected: str


@dataclass(frozen=True)
class Column:
    """How a raw column is read: its value, and which rows are mistakes."""

    raw: str
    name: str
    value: pl.Expr
    checks: tuple[Check, ...]


class Mistake(ValueError):
    """What a transform raises for a value that is not what its column holds.

    Attributes:
        column: its name.
        row: counts from 0 in the frame that the transform was given.
        expected: what should be there, in words.
    """

    def __init__(self, column: str, row: int, expected: str) -> None:
        super().__init__(f"column {column!r}, row {row}: expected {expected}")
        self.column, self.row, self.expected = column, row, expected


_MAX_FLOAT32 = float(np.finfo(np.float32).max)


def hash_ids(values: pl.Series, feature: RawFeature) -> np.ndarray:
    """Ids (int64) in [0, feature.hash) of non-null texts; -1 for one that `hash_function` hex cannot read."""
    assert feature.hash is not None
    if feature.hash_function == "text":
        return (1 + hash_text(values.to_arrow()) % np.uint64(feature.hash - 1)).astype(np.int64)
    numbers = values.str.to_integer(base=16, strict=False, dtype=pl.Int64)
    readable = numbers.is_between(0, 2**32 - 1).fill_null(False).to_numpy()
    signed = numbers.fill_null(0).to_numpy().astype(np.uint32).view(np.int32).astype(np.int64)
    return np.where(readable, signed % feature.hash, -1)


def columns(path: Path, dtypes: pl.Schema, spec: RawSchema, trained: bool = False) -> Iterator[Column]:
    """The columns to read from frames of a file with these dtypes, under their names in the prepared schema.

    Label (-1, 0 or 1), weight and dense Float64 (missing null); group String (missing null); timestamp Int64 seconds;
    ids String, or Int64 where the rows of the table are given, missing null or 0, in lists for features of several
    values. A missing column or one of the wrong type is a UserError. Ids beyond a table with given rows are mistakes,
    or 0 if a model was `trained` with it.
    """
    schema = spec.draft
    check_columns(path, dtypes.names(), spec)

    # numbers must not be read of the codes that categories have
    texts = {name for name, dtype in dtypes.items() if dtype in (pl.String, pl.Categorical, pl.Enum)}

    def present(name: str) -> pl.Expr:
        column = pl.col(name).cast(pl.String) if name in texts else pl.col(name)
        if name in texts:
            return pl.when(~column.is_in(["", *spec.null_values])).then(column).alias(name)
        return column

    label = present(spec.label)
    number = truth(label) if spec.label in texts else label.cast(pl.Float64, strict=False)
    expected = "0 or 1 (or false and true, or -1 and 1)"
    if trained:
        expected += "; of rows without a label leave the column out"
    yield Column(spec.label, spec.label, number, (Check(~number.is_in([-1.0, 0.0, 1.0]), expected),))
    if spec.group is not None and schema.group is not None:
        text = present(spec.group).cast(pl.String)
        yield Column(spec.group, schema.group, _as_integers(pl.when(text != "").then(text), spec), ())
    if spec.timestamp is not None and schema.timestamp is not None:
        value = present(spec.timestamp)
        if spec.timestamp in texts:
            value = value.map_batches(seconds, return_dtype=pl.Int64)
        value = value.dt.epoch("s") if dtypes[spec.timestamp].is_temporal() else value
        value = value.cast(pl.Int64, strict=False)
        checks = (Check(value.is_null(), TIME), Check(value.abs() > LAST_SECOND, OTHER_UNIT))
        yield Column(spec.timestamp, schema.timestamp, value, checks)
    if spec.weight is not None:
        value = present(spec.weight).cast(pl.Float64, strict=False)
        bad = ~(value.is_finite() & (value >= 0))
        yield Column(spec.weight, spec.weight, value, (Check(bad, "a number from 0"),))
    for feature in spec.features:
        column = present(feature.raw)
        if feature.kind == "dense":
            kept = column.cast(pl.Float64, strict=False)
            too_large = (kept.abs() > _MAX_FLOAT32).fill_null(False) & kept.is_not_nan().fill_null(False)
            bad = (column.is_not_null() & kept.is_null()) | too_large
            expected = "a finite number or nothing (`null_values` are texts that mean nothing)"
            yield Column(feature.raw, feature.name, kept.fill_nan(None), (Check(bad, expected),))
        else:
            dtype = pl.String() if feature.raw in texts else dtypes[feature.raw]
            yield _id_column(path, feature, column, dtype, spec, trained)


def check_columns(path: Path, found: Sequence[str], spec: RawSchema) -> None:
    """UserError if a file lacks a column that the schema names."""
    for name in spec.raw_columns:
        if name in found:
            continue
        message = f"{path} has no column {name!r}; it has {', '.join(map(repr, found))}"
        similar = [other for other in found if other.strip().casefold() == name.strip().casefold()]
        if similar:
            message += (
                f": write {similar[0]!r} in the schema (of a feature, as its `column`), or rename it here"
            )
        if len(found) == 1:
            message += ": is `delimiter` right?"
        elif spec.header is None and not set(found) & set(spec.raw_columns):
            message += ": if these are the first row's values, give the names of the columns as `header`"
        raise UserError(message)


def _as_integers(texts: pl.Expr, spec: RawSchema) -> pl.Expr:
    return texts.str.replace(WHOLE_FLOAT, "$1") if spec.whole_floats == "integer" else texts


def _id_column(
    path: Path, feature: RawFeature, column: pl.Expr, dtype: pl.DataType, spec: RawSchema, trained: bool
) -> Column:
    is_list = isinstance(dtype, pl.List)
    checks = []
    if feature.kind != "categorical" and dtype == pl.String:
        written = column.str.contains(written_list(spec.separator)).fill_null(False)
        checks.append(
            Check(written, f"values with {spec.separator!r} between them, not a list as Python writes it")
        )
        # an empty cell is an empty list
        column, is_list = column.str.split(spec.separator), True
        dtype = pl.List(pl.String)
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    if is_list != (feature.kind != "categorical"):
        raise UserError(f"{path}: column {feature.raw!r} is {dtype}, which is not {feature.kind}")
    if not (inner == pl.String or inner == pl.Boolean or inner.is_integer() or inner == pl.Categorical):
        raise UserError(
            f"{path}: column {feature.raw!r} holds {inner}, not ids: cast it to integer or text, or make "
            "it dense"
        )
    size = spec.tables.get(_table(feature))

    def present(values: pl.Expr) -> pl.Expr:
        text = values.cast(pl.String)
        missing = text.is_in(["", *spec.null_values]) if spec.null_values else text == ""
        text = pl.when(~missing).then(text)
        return _as_integers(text, spec) if inner == pl.String else text

    def convert(values: pl.Expr) -> pl.Expr:
        if size is None:
            return present(values)
        ids = present(values).cast(pl.Int64, strict=False)
        return pl.when(ids.is_between(0, size - 1)).then(ids).otherwise(0)

    def mistaken(values: pl.Expr) -> pl.Expr:
        text = present(values)
        ids = text.cast(pl.Int64, strict=False)
        if trained:
            return ids.is_null() & ~text.str.contains(INTEGER)  # one of more than 64 bits is as good as any
        return text.is_not_null() & ~ids.is_between(0, (size or 1) - 1).fill_null(False)

    def lossy(values: pl.Expr) -> pl.Expr:
        return values.str.contains(LOSSY_FLOAT).fill_null(False)

    def anywhere(check: Callable[[pl.Expr], pl.Expr]) -> pl.Expr:
        return column.list.eval(check(pl.element())).list.any() if is_list else check(column)

    if size is not None:
        expected = "ids" if trained else f"ids from 0 to {size - 1}"
        if spec.whole_floats != "integer" and not trained:
            expected += f" ({size - 1}.0 is one with `whole_floats: integer`)"
        checks.append(Check(anywhere(mistaken).fill_null(False), expected))
    elif spec.whole_floats == "integer" and inner == pl.String:
        checks.append(Check(anywhere(lossy).fill_null(False), "an integer with all of its digits"))
    value = convert(column)
    if is_list:
        value = column.fill_null([]).list.eval(convert(pl.element()))
        if feature.max_length is not None:
            kept = value.list.tail if feature.keep == "recent" else value.list.head
            value = kept(feature.max_length)
    return Column(feature.raw, feature.name, value, tuple(checks))
