"""The user's own CSV or Parquet files, described by a raw schema (`RawSchema`, a YAML file)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.schema import Feature, FeatureKind, Schema
from trainer.errors import UserError
from trainer.prepare.dataset import (
    SPLITS,
    Card,
    Fractions,
    build_vocabulary,
    check_fractions,
    encode,
    random_split,
    staging,
    time_cuts,
    write_dataset,
    yaml_errors,
)

Format = Literal["csv", "parquet"]

BATCH_ROWS = 131_072
SUFFIXES = {"csv": (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz"), "parquet": (".parquet",)}


class RawFeature(BaseModel):
    """One raw column: a feature as in `models.schema`, whose ids may still be any values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Column name in the raw files, and in the prepared ones.")
    kind: FeatureKind
    table: str | None = Field(None, description="Table, and vocabulary, of the values. Default: the name.")
    max_length: int | None = Field(None, description="Sequences only: the most recent values kept.")
    min_count: int | None = Field(
        None, gt=0, description="Values seen less often in train, in the whole table, become id 0."
    )
    transform: Literal["none", "log1p", "standardize"] = Field(
        "none",
        description="Dense only: sign(x) log(1 + |x|), or mean 0 and standard deviation 1 over train.",
    )

    @model_validator(mode="after")
    def _check(self) -> "RawFeature":
        if self.kind == "dense" and self.min_count is not None:
            raise ValueError(f"feature {self.name!r} is dense and cannot have a min_count")
        if self.kind != "dense" and self.transform != "none":
            raise ValueError(f"feature {self.name!r} is not dense and cannot have a transform")
        return self


class RawSchema(BaseModel):
    """What the raw columns are: `Schema` before vocabularies, and how a CSV file is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    group: str | None = Field(None, description="Any values; they become integers.")
    timestamp: str | None = Field(None, description="Integer seconds, or dates and times in Parquet.")
    weight: str | None = None
    tables: dict[str, int | None] = Field(
        {}, description="Rows of tables whose values are ids already; null or left out: build a vocabulary."
    )
    features: tuple[RawFeature, ...] = Field(min_length=1)
    min_count: int = Field(1, gt=0, description="For tables none of whose features has its own.")
    separator: str = Field("|", min_length=1, description="Between the values of a list in CSV.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="Between the columns of CSV.")
    header: tuple[str, ...] | None = Field(
        None, description="CSV column names, for files without a line of them."
    )

    @model_validator(mode="after")
    def _check(self) -> "RawSchema":
        for table in self.vocabulary_tables:
            counts = {f.min_count for f in self.features if _table(f) == table and f.min_count}
            if len(counts) > 1:
                raise ValueError(f"features of table {table!r} have different min_counts")
        return self

    @property
    def vocabulary_tables(self) -> list[str]:
        """Tables whose rows are not given, in the order of the features."""
        tables = dict.fromkeys(_table(feature) for feature in self.features if feature.kind != "dense")
        return [table for table in tables if self.tables.get(table) is None]

    def table_min_count(self, table: str) -> int:
        """The min_count of the features of a table, or the general one."""
        return next(
            (f.min_count for f in self.features if _table(f) == table and f.min_count), self.min_count
        )

    def prepared(self, rows: Mapping[str, int]) -> Schema:
        """The schema of the prepared files, given the rows of the tables without given ones.

        A group or timestamp that is also a feature becomes a column of its own, `<name>_group` or
        `<name>_timestamp`, because the feature's column holds ids.
        """
        names = {feature.name for feature in self.features}
        return Schema(
            label=self.label,
            group=f"{self.group}_group" if self.group in names else self.group,
            timestamp=f"{self.timestamp}_timestamp" if self.timestamp in names else self.timestamp,
            weight=self.weight,
            tables={name: size for name, size in self.tables.items() if size is not None} | dict(rows),
            features=tuple(
                Feature(name=f.name, kind=f.kind, table=f.table, max_length=f.max_length)
                for f in self.features
            ),
        )

    @classmethod
    def load(cls, path: Path) -> "RawSchema":
        """Read and check a raw schema; every mistake in it is a UserError."""
        with yaml_errors(path):
            raw = cls.model_validate(yaml.safe_load(path.read_text()))
            raw.prepared(dict.fromkeys(raw.vocabulary_tables, 1))
        names = {feature.name for feature in raw.features}
        if clash := names & {raw.label, raw.weight}:
            raise UserError(f"{path}: {clash.pop()!r} is both a feature and the label or the weight")
        return raw


def _table(feature: RawFeature) -> str:
    return feature.table or feature.name


@dataclass(frozen=True)
class _Column:
    """How a raw column is read: its value, and which rows are mistakes."""

    raw: str
    name: str
    value: pl.Expr
    bad: pl.Expr | None
    expected: str


def prepare_tabular(
    format: Format,
    raw: Path,
    out: Path,
    schema_file: Path,
    split: str = "random:0.8,0.1,0.1",
    overwrite: bool = False,
    seed: int = 1,
    command: str | None = None,
) -> Schema:
    """Prepare a CSV or Parquet file, or a directory of them (read in the order of their names).

    A directory with files or subdirectories named train, validation and test is used as split there, and
    `split` is not. Else `random:0.8,0.1,0.1` splits by a seeded hash of the group (of the row number, where
    there is no group), and `time:0.8,0.1,0.1` by the timestamp, with rows in time order.

    Columns: label float32 (raw 0 or 1); group int64 (raw integers as they are, other values numbered from
    1 in sorted order); timestamp int64 seconds; weight float32; ids int32 in each table's vocabulary of
    train (raw values are compared as text, so 7 and "7" are one value; where `tables` gives the rows, raw
    values are ids already); dense float32, transformed, missing values 0 after the transform.

    In memory: vocabularies, distinct groups, timestamps for a split by time, and batches of BATCH_ROWS
    rows; a time split of rows that are not in time order sorts all of them in memory. A typed copy of the
    raw columns lies beside `out` while it runs. `command` is what the card names as its origin. Raises
    UserError with file, column and row (1 is the first data row) for values that are not what the schema
    says, and for missing files or columns, an unusable split and an existing `out`.
    """
    spec = RawSchema.load(schema_file)
    files = _input_files(raw, format)
    with staging(out, overwrite) as directory:
        typed = directory / "typed.parquet"
        frames = [
            _typed(file, format, spec).with_columns(pl.lit(number, pl.Int8).alias("#split"))
            for number, paths in files.items()
            for file in paths
        ]
        pl.concat(frames).with_row_index("#row").sink_parquet(typed)
        index, rule = pl.col("#split"), "the given files"
        if len(files) == 1:
            index, rule = _split(split, spec, typed, seed)
        groups = _group_codes(spec, typed)
        rows = pl.scan_parquet(typed).with_columns(groups)
        train = rows.with_columns(index.alias("#split")).filter(pl.col("#split") == 0)
        vocabularies = {
            table: build_vocabulary(_values(train, spec, table), spec.table_min_count(table))
            for table in spec.vocabulary_tables
        }
        schema = spec.prepared({table: len(values) + 1 for table, values in vocabularies.items()})
        outputs = [*groups, *_encoders(spec, vocabularies), *_dense(spec, train)]

        def batches() -> Iterator[tuple[str, pl.DataFrame]]:
            with pq.ParquetFile(typed) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    frame = pl.DataFrame(batch).with_columns(groups).with_columns(index.alias("#split"))
                    for number, name in enumerate(SPLITS):
                        part = frame.filter(pl.col("#split") == number)
                        if part.height:
                            yield name, part.with_columns(outputs[len(groups) :])

        result = write_dataset(
            directory,
            schema,
            batches(),
            Card(
                title=f"{raw.name} ({format})",
                source=str(raw),
                split_rule=rule,
                command=command
                or f"prepare_tabular({format!r}, raw={str(raw)!r}, out={str(out)!r}, "
                f"schema_file={str(schema_file)!r}, split={split!r}, seed={seed})",
                seed=seed if rule.startswith("random") else None,
                notes=_notes(spec, rows),
            ),
            total_rows=pq.read_metadata(typed).num_rows,
        )
        typed.unlink()
        return result


def _input_files(raw: Path, format: Format) -> dict[int, list[Path]]:
    """Files by index into SPLITS; only 0, with all of them, where there is nothing split already."""
    if raw.is_file():
        return {0: [raw]}
    if not raw.is_dir():
        raise UserError(f"{raw} does not exist: give a {format} file or a directory of them")

    def data_files(directory: Path) -> list[Path]:
        return sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIXES[format]))

    given: dict[int, list[Path]] = {}
    for number, name in enumerate(SPLITS):
        single = [raw / (name + suffix) for suffix in SUFFIXES[format] if (raw / (name + suffix)).is_file()]
        found = data_files(raw / name) if (raw / name).is_dir() else single
        if found:
            given[number] = found
    if len(given) == len(SPLITS):
        return given
    if given:
        missing = ", ".join(name for number, name in enumerate(SPLITS) if number not in given)
        raise UserError(f"{raw} is split, but has no {format} data for {missing}: add it, or give one file")
    if files := data_files(raw):
        return {0: files}
    raise UserError(f"{raw} holds no {format} files ({', '.join(SUFFIXES[format])})")


def _scan(path: Path, format: Format, spec: RawSchema) -> pl.LazyFrame:
    if format == "parquet":
        return pl.scan_parquet(path)
    # every CSV value is read as text, so that a mistake can be named with its row
    return pl.scan_csv(
        path,
        separator=spec.delimiter,
        has_header=spec.header is None,
        new_columns=list(spec.header) if spec.header else None,
        infer_schema=False,
    )


def _typed(path: Path, format: Format, spec: RawSchema) -> pl.LazyFrame:
    """One raw file with text ids, numbers and integers as the schema says; raises UserError for others."""
    try:
        frame = _scan(path, format, spec)
        dtypes = frame.collect_schema()
        columns = list(_columns(path, dtypes, spec))
        checks = [
            pl.col("#row").filter(column.bad.fill_null(True)).min().alias(column.name)
            for column in columns
            if column.bad is not None
        ]
        found = frame.with_row_index("#row", offset=1).select(checks).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path} is not readable as {format}: {str(error).splitlines()[0]}") from error
    for column in columns:
        if column.bad is not None and (row := found[column.name].item()) is not None:
            raise UserError(f"{path}: column {column.raw!r}, row {row}: expected {column.expected}")
    return frame.select(column.value.alias(column.name) for column in columns)


def _columns(path: Path, dtypes: pl.Schema, spec: RawSchema) -> Iterator[_Column]:
    """The columns to read from a file with these dtypes."""
    schema = spec.prepared(dict.fromkeys(spec.vocabulary_tables, 1))
    used = [spec.label, spec.group, spec.timestamp, spec.weight, *(f.name for f in spec.features)]
    for name in used:
        if name is not None and name not in dtypes:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(dtypes.names())}")
    number = pl.col(spec.label).cast(pl.Float64, strict=False)
    yield _Column(spec.label, spec.label, number, ~number.is_in([0.0, 1.0]), "0 or 1")
    if spec.group is not None and schema.group is not None:
        value = pl.col(spec.group).cast(pl.String)
        yield _Column(spec.group, schema.group, value, value.is_null(), "a value")
    if spec.timestamp is not None and schema.timestamp is not None:
        value = pl.col(spec.timestamp)
        value = value.dt.epoch("s") if dtypes[spec.timestamp].is_temporal() else value
        value = value.cast(pl.Int64, strict=False)
        yield _Column(spec.timestamp, schema.timestamp, value, value.is_null(), "integer seconds")
    if spec.weight is not None:
        value = pl.col(spec.weight).cast(pl.Float64, strict=False)
        bad = ~(value.is_finite() & (value >= 0))
        yield _Column(spec.weight, spec.weight, value, bad, "a number from 0")
    for feature in spec.features:
        if feature.kind == "dense":
            column = pl.col(feature.name)
            value = column.cast(pl.Float64, strict=False).fill_nan(None)
            kept = column.cast(pl.Float64, strict=False)
            bad = (column.is_not_null() & kept.is_null()) | kept.is_infinite().fill_null(False)
            yield _Column(feature.name, feature.name, value, bad, "a finite number or nothing")
        else:
            yield _id_column(path, feature, dtypes[feature.name], spec)


def _id_column(path: Path, feature: RawFeature, dtype: pl.DataType, spec: RawSchema) -> _Column:
    is_list = isinstance(dtype, pl.List)
    column = pl.col(feature.name)
    if feature.kind != "categorical" and dtype == pl.String:
        # an empty cell is an empty list
        column, is_list = column.str.split(spec.separator), True
        dtype = pl.List(pl.String)
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    if is_list != (feature.kind != "categorical"):
        raise UserError(f"{path}: column {feature.name!r} is {dtype}, which is not {feature.kind}")
    if not (inner == pl.String or inner == pl.Boolean or inner.is_integer() or inner == pl.Categorical):
        raise UserError(
            f"{path}: column {feature.name!r} holds {inner}, not ids: cast it to integer or text, or make "
            "it dense"
        )
    size = spec.tables.get(_table(feature))

    def convert(values: pl.Expr) -> pl.Expr:
        text = values.cast(pl.String)
        text = pl.when(text != "").then(text)
        return text if size is None else text.cast(pl.Int64, strict=False).fill_null(0)

    def mistaken(values: pl.Expr) -> pl.Expr:
        text = values.cast(pl.String)
        ids = text.cast(pl.Int64, strict=False)
        return text.is_not_null() & (text != "") & ~ids.is_between(0, (size or 1) - 1).fill_null(False)

    bad = None
    if not is_list:
        value = convert(column)
        bad = mistaken(column).fill_null(False)
    else:
        value = column.fill_null([]).list.eval(convert(pl.element()))
        bad = column.list.eval(mistaken(pl.element()).fill_null(False)).list.any().fill_null(False)
        if feature.max_length is not None:
            value = value.list.tail(feature.max_length)
    expected = f"ids from 0 to {(size or 1) - 1}"
    return _Column(feature.name, feature.name, value, None if size is None else bad, expected)


def _split(rule: str, spec: RawSchema, typed: Path, seed: int) -> tuple[pl.Expr, str]:
    """The index into SPLITS of a row, and the rule in words; sorts `typed` for a split by time."""
    kind, _, numbers = rule.partition(":")
    try:
        fractions: Fractions = tuple(float(number) for number in numbers.split(","))  # type: ignore[assignment]
    except ValueError:
        fractions = (0, 0, 0)
    if kind not in ("random", "time"):
        raise UserError(f"split {rule!r}: give random:0.8,0.1,0.1 or time:0.8,0.1,0.1")
    check_fractions(fractions)
    schema = spec.prepared(dict.fromkeys(spec.vocabulary_tables, 1))
    if kind == "random":
        key = schema.group or "#row"
        index = pl.col(key).map_batches(
            lambda keys: random_split(keys, seed, fractions), return_dtype=pl.Int8, is_elementwise=True
        )
        return index, f"random by {spec.group or 'row'} (seeded hash), {numbers}"
    if schema.timestamp is None:
        raise UserError("a split by time needs a timestamp column in the schema; or use a random split")
    times = pl.read_parquet(typed, columns=[schema.timestamp])[schema.timestamp]
    cuts = time_cuts(times, fractions)
    if not times.is_sorted():
        ordered = typed.with_name("sorted.parquet")
        pl.scan_parquet(typed).sort(schema.timestamp, maintain_order=True).sink_parquet(ordered)
        ordered.rename(typed)
    index = sum(((pl.col(schema.timestamp) >= cut).cast(pl.Int8) for cut in cuts), pl.lit(0, pl.Int8))
    return index, f"by time ({spec.timestamp}), {numbers}; rows in time order"


def _group_codes(spec: RawSchema, typed: Path) -> list[pl.Expr]:
    """The group as integers: as they are where all are integers, else numbered in sorted order."""
    name = spec.prepared(dict.fromkeys(spec.vocabulary_tables, 1)).group
    if name is None:
        return []
    distinct = build_vocabulary(pl.scan_parquet(typed).select(name))
    if distinct.cast(pl.Int64, strict=False).null_count() == 0:
        return [pl.col(name).cast(pl.Int64)]
    return [encode(pl.col(name), distinct).cast(pl.Int64)]


def _values(train: pl.LazyFrame, spec: RawSchema, table: str) -> pl.LazyFrame:
    """All values of the features of a table, one a row."""
    columns = []
    for feature in spec.features:
        if feature.kind != "dense" and _table(feature) == table:
            column = pl.col(feature.name)
            columns.append(
                train.select((column if feature.kind == "categorical" else column.explode()).alias("value"))
            )
    return pl.concat(columns)


def _encoders(spec: RawSchema, vocabularies: Mapping[str, pl.Series]) -> Iterator[pl.Expr]:
    """Values to ids, for the features of tables with a vocabulary."""
    for feature in spec.features:
        if feature.kind == "dense" or _table(feature) not in vocabularies:
            continue
        vocabulary = vocabularies[_table(feature)]
        if feature.kind == "categorical":
            yield encode(pl.col(feature.name), vocabulary)
        else:
            yield pl.col(feature.name).list.eval(encode(pl.element(), vocabulary))


def _dense(spec: RawSchema, train: pl.LazyFrame) -> Iterator[pl.Expr]:
    """Dense columns transformed, then without nulls."""
    for feature in spec.features:
        if feature.kind != "dense":
            continue
        value = pl.col(feature.name)
        if feature.transform == "log1p":
            value = value.sign() * value.abs().log1p()
        if feature.transform == "standardize":
            mean, deviation = (
                train.select(value.mean().alias("mean"), value.std(ddof=0).alias("deviation"))
                .collect(engine="streaming")
                .row(0)
            )
            value = (value - (mean or 0.0)) / (deviation or 1.0)
        yield value.fill_null(0.0)


def _notes(spec: RawSchema, rows: pl.LazyFrame) -> tuple[str, ...]:
    """Lines of the card: missing dense values, transforms and min_counts."""
    dense = [feature for feature in spec.features if feature.kind == "dense"]
    notes = []
    if dense:
        missing = rows.select(pl.col(f.name).null_count() for f in dense).collect(engine="streaming").row(0)
        for feature, count in zip(dense, missing, strict=True):
            if count:
                notes.append(f"`{feature.name}`: {count:,} missing values became 0 (after the transform).")
            if feature.transform != "none":
                notes.append(f"`{feature.name}`: transform {feature.transform}.")
    for table in spec.vocabulary_tables:
        if (count := spec.table_min_count(table)) > 1:
            notes.append(f"Table `{table}`: values seen less than {count} times in train became id 0.")
    return tuple(notes)
