"""What every preparation shares: splits, vocabularies, and the writer of the layout.

    OUT/schema.yaml  README.md  card.json
    OUT/encoding.yaml (of rows that `prepare_table` read)  vocabularies/<table>.parquet
    OUT/{train,validation,test}/part-00000.parquet ...

No torch: it is slow to import.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.console import progress_bar
from cetnet.trainer.encoder.hashing import mix64
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import lock_held, usable
from cetnet.trainer.prepare.engine.card import Card, write_card
from cetnet.trainer.prepare.engine.part_files import ROWS_PER_FILE, PartWriter, part_name
from cetnet.trainer.prepare.engine.statistics import Measure, SplitStatistics
from cetnet.trainer.prepare.engine.vocabulary_files import VocabularyWriter, file_of
from cetnet.trainer.processes.signals import cleaning_up
from cetnet.trainer.yaml_files import save_yaml

SPLITS = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)

Fractions = tuple[float, float, float]


# ---------------------------------------------------------------------------------------------- splits


def hashed_uniform(keys: np.ndarray, seed: int) -> np.ndarray:
    """A float64 in [0, 1) per integer key: the same for equal (key, seed), whatever else is in `keys`."""
    salt = mix64(np.array([seed % 2**64], dtype=np.uint64))
    return (mix64(keys.astype(np.int64).view(np.uint64) ^ salt) >> np.uint64(11)) * 2.0**-53


def check_fractions(fractions: Fractions) -> None:
    """Three positive numbers that add up to 1; anything else is a UserError."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        shown = ",".join(f"{fraction:g}" for fraction in fractions)
        raise UserError(
            f"split fractions {shown}: give three positive numbers (train, validation, test) that add up "
            "to 1, such as 0.8,0.1,0.1"
        )


def random_split(keys: pl.Series, seed: int, fractions: Fractions = DEFAULT_FRACTIONS) -> pl.Series:
    """Index into SPLITS (Int8) for each integer group key: all rows of a group fall into one split.

    A function of (key, seed) alone, so it can be computed chunk by chunk.
    """
    bounds = np.cumsum(fractions)[:2]
    index = np.searchsorted(bounds, hashed_uniform(keys.to_numpy(), seed), side="right")
    return pl.Series("split", index.astype(np.int8))


def time_cuts(timestamps: pl.Series, fractions: Fractions = DEFAULT_FRACTIONS) -> tuple[int, int]:
    """First timestamps of validation and of test, so that each split holds its fraction of the rows.

    Rows with equal timestamps stay together, in the later split. Too few distinct timestamps for three
    splits are a UserError.
    """
    ordered = timestamps.sort()
    first, second = (ordered[int(len(ordered) * share)] for share in np.cumsum(fractions)[:2])
    if not ordered[0] < first < second:
        raise UserError(
            f"column {timestamps.name!r} has too few distinct timestamps for a split by time "
            f"(from {ordered[0]} to {ordered[-1]}); use a random split"
        )
    return first, second


def time_split(timestamps: pl.Series, cuts: tuple[int, int]) -> pl.Series:
    """Index into SPLITS (Int8) for each timestamp: train < cuts[0] <= validation < cuts[1] <= test."""
    return pl.Series("split", np.searchsorted(cuts, timestamps.to_numpy(), side="right").astype(np.int8))


# ---------------------------------------------------------------------------------------- vocabularies


def build_vocabulary(values: pl.Series | pl.LazyFrame, min_count: int = 1) -> pl.Series:
    """Distinct non-null values that occur at least `min_count` times; the value at position i has id i + 1.

    `values` is a column, or a lazy frame of one column: then only the distinct values are in memory. In the
    order of the values, not of their frequency: row-wise sharding gives neighbouring rows to one rank, and
    that rank should not get all the hot ones.
    """
    frame = values.to_frame().lazy() if isinstance(values, pl.Series) else values
    counts = frame.select(pl.all().alias("value")).drop_nulls().group_by("value").len("count")
    kept = counts.filter(pl.col("count") >= min_count).select("value")
    return kept.collect(engine="streaming")["value"].sort()


def encode(values: pl.Expr, vocabulary: pl.Series) -> pl.Expr:
    """Ids (Int32) of values: 0 for null and for values outside the vocabulary, else 1 + the position."""
    if vocabulary.is_empty():
        return values.is_null().cast(pl.Int32) * 0
    ids = pl.Series(np.arange(1, len(vocabulary) + 1, dtype=np.int32))
    return values.replace_strict(vocabulary, ids, default=0, return_dtype=pl.Int32).fill_null(0)


def list_column(values: np.ndarray | pl.Series, lengths: np.ndarray) -> pl.Series:
    """Lists of these lengths, cut from `values` one after the other."""
    offsets = np.concatenate([[0], lengths.cumsum()])
    if isinstance(values, pl.Series):
        values = values.to_arrow()
    return pl.Series(pa.LargeListArray.from_arrays(offsets.astype(np.int64), values))


# ---------------------------------------------------------------------------------------------- output


def check_out(out: Path, overwrite: bool) -> None:
    """UserError if `out` can't be made or exists, unless it may be overwritten; what is no dataset never is.

    Another one if its path is not UTF-8, since pyarrow takes no other. An `out` that a process killed in `publish`
    had moved away is put back first.
    """
    try:
        usable(out)
        str(out.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"{out.absolute()}: a name that is not UTF-8; give another directory") from None
    except ValueError as error:
        raise UserError(f"{out}: {error}; give another directory") from None
    if out.is_symlink() and not out.exists():
        raise UserError(f"{out} is a link that leads nowhere: remove it, or give another directory")
    if not out.exists():
        for replaced in (_beside(out, kind) / "old" for kind in ("work", "tmp")):
            if replaced.exists():
                replaced.rename(out)
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} exists already: give another directory, or overwrite it with --overwrite")
    is_run = (out / "config.yaml").exists()  # which has its dataset's card
    if not out.is_dir() or is_run or (any(out.iterdir()) and not (out / "card.json").is_file()):
        raise UserError(
            f"{out} is not a prepared dataset ({'a run' if is_run else 'no card.json'}), so it is not overwritten: "
            "remove it, or give another directory"
        )
    if out.is_mount():
        raise UserError(f"{out} is a mount point, which can't be replaced: give a directory in it")


def _beside(out: Path, kind: str) -> Path:
    return out.with_name(f".{out.name}.{kind}")


@contextmanager
def locked_folder(out: Path, kind: Literal["work", "tmp"]) -> Iterator[Path]:
    """The folder `.NAME.kind` beside `out`, made if need be, for one process at a time; UserError for another."""
    folder = _beside(out, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write beside {out}: {error.strerror}; give a writable directory") from error
    taken = f"{out} is being prepared by another process: wait for it"
    with cleaning_up(), lock_held(folder / "lock", taken):
        yield folder


def publish(staged: Path, out: Path) -> None:
    """Rename a finished directory to `out`, replacing what is there; `staged` is `new` in a `locked_folder`."""
    replaced = staged.with_name("old")
    if out.exists():
        shutil.rmtree(replaced, ignore_errors=True)  # of a process killed after it had published
        out.rename(replaced)
    try:
        staged.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise


@contextmanager
def staging(out: Path, overwrite: bool) -> Iterator[Path]:
    """`.NAME.tmp/new` beside `out`, renamed to `out` at the end; `.NAME.tmp` is removed on any failure or Ctrl-C.

    What a killed process left of it is removed at the next start. An existing `out` is a UserError unless
    `overwrite`; what is not a prepared dataset is never removed.
    """
    check_out(out, overwrite)
    with locked_folder(out, "tmp") as temporary:
        try:
            staged = temporary / "new"
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
            yield staged
            publish(staged, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


class _Parts:
    """The files of one split."""

    def __init__(self, directory: Path, columns: pa.Schema, seen: Callable[[pa.Table], None]) -> None:
        self._directory = directory
        self._columns = columns
        self._seen = seen
        self._writer: PartWriter | None = None
        self._part = 0
        self._rows_in_file = 0

    def write(self, table: pa.Table) -> None:
        while table.num_rows:
            if self._writer is None:
                self._directory.mkdir(exist_ok=True)
                self._writer = PartWriter(self._directory / part_name(self._part), self._columns, self._seen)
            rows = min(table.num_rows, ROWS_PER_FILE - self._rows_in_file)
            self._writer.write(table.slice(0, rows))
            table = table.slice(rows)
            self._rows_in_file += rows
            if self._rows_in_file == ROWS_PER_FILE:
                self.close()
                self._writer, self._part, self._rows_in_file = None, self._part + 1, 0

    def close(self) -> None:
        if self._writer:
            self._writer.close()


def arrow_schema(schema: Schema, labelled: bool = True) -> pa.Schema:
    """Columns on disk: ids int32 (int64 for tables beyond it), group and timestamp int64, else float32."""
    columns: dict[str, pa.DataType] = {schema.label: pa.float32()} if labelled else {}
    for name, dtype in (
        (schema.group, pa.int64()),
        (schema.timestamp, pa.int64()),
        (schema.weight, pa.float32()),
        (schema.true_probability, pa.float32()),
    ):
        if name is not None:
            columns[name] = dtype
    for feature in schema.features:
        columns[feature.name] = _dtype(feature, schema)
    return pa.schema([pa.field(name, dtype) for name, dtype in columns.items()])


def _dtype(feature: Feature, schema: Schema) -> pa.DataType:
    if feature.table is None:
        return pa.float32()
    ids = pa.int32() if schema.tables[feature.table] <= 2**31 else pa.int64()
    return ids if feature.kind == "categorical" else pa.list_(ids)


def write_dataset(
    directory: Path,
    schema: Schema,
    frames: Iterable[tuple[str, pl.DataFrame]],
    card: Card,
    total_rows: int | None = None,
    vocabularies: Mapping[str, pl.Series] | None = None,
) -> Schema:
    """Write (split, frame) pairs, in their order within each split, then the schema and the data card.

    Each frame holds the schema's columns (others are dropped) in types that cast losslessly to those of
    `arrow_schema`, without nulls (but of the group), ids within their tables, sequences no longer than max_length.
    `vocabularies` are the values of tables, the one at position i with id i + 1: they are written with their counts.
    Memory: one frame and at most a row group per split, and the vocabularies. Returns the schema with `mean_length`
    measured on train. A split without rows is a UserError.
    """
    counts = {table: np.zeros(1 + len(values), np.int64) for table, values in (vocabularies or {}).items()}
    columns = arrow_schema(schema)
    statistics = {split: SplitStatistics() for split in SPLITS}
    parts = {
        split: _Parts(directory / split, columns, partial(sums.add, Measure(schema)))
        for split, sums in statistics.items()
    }
    with progress_bar() as progress:
        task = progress.add_task("rows", total=total_rows)
        for split, frame in frames:
            table = frame.select(columns.names).to_arrow().cast(columns)
            check_table(table, schema)
            parts[split].write(table)
            if split == "train":
                _count_ids(counts, table, schema)
            progress.advance(task, frame.height)
    for split in SPLITS:
        parts[split].close()
    digests = {}
    for table, values in sorted((vocabularies or {}).items()):
        writer = VocabularyWriter(file_of(directory, table))
        writer.write(values.cast(pl.String).to_arrow(), counts[table][1:])
        digests[table] = writer.close()
    schema = schema.model_copy(update={"vocabularies": digests or None})
    return finish_dataset(directory, schema, statistics, card)


def _count_ids(counts: Mapping[str, np.ndarray], table: pa.Table, schema: Schema) -> None:
    """Add how often each id of these tables occurs."""
    for feature in schema.id_features:
        of_table = counts.get(feature.table or "")
        if of_table is not None:
            for chunk in table[feature.name].chunks:
                ids = chunk if feature.kind == "categorical" else chunk.flatten()
                of_table += np.bincount(ids.to_numpy(), minlength=len(of_table))


def check_split_rows(rows: Mapping[str, int]) -> None:
    """A split without rows is a UserError."""
    for split, count in rows.items():
        if not count:
            found = ", ".join(f"{rows[name]:,} of {name}" for name in rows)
            raise UserError(f"the {split} split has no rows ({found}): give more data, or another --split")


def finish_dataset(
    directory: Path, schema: Schema, statistics: Mapping[str, SplitStatistics], card: Card
) -> Schema:
    """Write the schema and the data card beside the splits' files; returns the schema with mean lengths.

    These are train's, or where there is none, those of the first split.
    """
    check_split_rows({split: sums.rows for split, sums in statistics.items()})
    train = next(iter(statistics.values()))
    features = tuple(
        feature.model_copy(update={"mean_length": round(train.ids[feature.name].ids / train.rows, 4)})
        if feature.table is not None
        else feature
        for feature in schema.features
    )
    schema = schema.model_copy(update={"features": features})
    save_yaml(directory / "schema.yaml", schema)
    write_card(directory, schema, statistics, card)
    return schema


def check_table(table: pa.Table, schema: Schema) -> None:
    """The contract between the preparations and the writer; a failure is our mistake, not the user's."""
    for name in table.column_names:
        assert name == schema.group or table[name].null_count == 0, f"nulls in {name}"
    for feature in schema.id_features:
        assert feature.table is not None
        for chunk in table[feature.name].chunks:
            ids = chunk.flatten() if pa.types.is_list(chunk.type) else chunk
            assert ids.null_count == 0, f"nulls in lists of {feature.name}"
            low, high = pc.min_max(ids).as_py().values()
            assert low is None or (low >= 0 and high < schema.tables[feature.table]), feature.name
            if feature.max_length is not None:
                longest = pc.max(pc.list_value_length(chunk)).as_py()
                assert longest is None or longest <= feature.max_length, f"{feature.name} is too long"
