"""Chunks of typed rows -> their splits and counts -> the values kept, numbered, and the numbers of each chunk's own.

No task looks a value up among all values kept: `number_values` sorts a range of them once, and hands every chunk the
numbers of its own distinct values. The ranges are quantiles of samples of all chunks' distinct values, so their size
is known however skewed the values are, and the order of the ids is that of the values.
"""

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from cetnet.trainer.prepare.engine.arrow_files import IPC_OPTIONS, RowWriter, read_batch
from cetnet.trainer.prepare.engine.known import ADDED, Known
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.splits import Assign
from cetnet.trainer.prepare.engine.tasks import write_facts
from cetnet.trainer.prepare.engine.typed import GROUP, Chunk, coded_columns, flatten
from cetnet.trainer.prepare.engine.vectors import open_vectors
from cetnet.trainer.prepare.engine.vocabulary_files import VocabularyWriter

_ENTRIES = pa.schema([("value", pa.large_string()), ("count", pa.int64())])
_IDS = pa.schema([("id", pa.int64())])


def split_rows(chunk: Chunk, spec: RawSchema, wanted: Sequence[str] | None = None) -> pl.DataFrame:
    """The columns of a chunk that a split may read (see `Split.fit`); all, or the wanted ones."""
    schema = spec.draft
    names = {"#label": schema.label, GROUP: schema.group, "#timestamp": schema.timestamp}
    read = {
        key: name for key, name in names.items() if name is not None and (wanted is None or key in wanted)
    }
    rows = pl.int_range(chunk.first_row, chunk.first_row + chunk.rows, eager=True)
    frame = pl.DataFrame({"#row": rows}).with_columns(pl.lit(chunk.file, pl.Int32).alias("#file"))
    if read:
        columns = chunk.read(list(read.values()))
        frame = frame.hstack(columns.rename({v: k for k, v in read.items()}))
    if GROUP in read:
        values = chunk.values(list(coded_columns(spec)).index(GROUP))
        codes = frame[GROUP]
        frame = frame.with_columns(values.gather(codes.set(codes == 0, None) - 1).alias(GROUP))
    return frame


def count_values(
    folder: Path,
    chunk: Chunk,
    spec: RawSchema,
    assign: Assign | None,
    splitters: Mapping[str, Sequence[str]],
    counting: bool,
) -> None:
    """split.npy; entries.arrow (a batch a range of a table: distinct values, counts in train); facts.json.

    Without `counting` nothing is learned of train, and counts are 0.
    """
    if assign is None:
        split = np.full(chunk.rows, chunk.split, np.int8)
    else:
        split = assign(split_rows(chunk, spec)).to_numpy()
    np.save(folder / "split.npy", split)
    dense = [feature.name for feature in spec.features if feature.kind == "dense"]
    rows = chunk.read(None if counting else dense)
    missing = {
        name: np.bincount(split[rows[name].is_null().to_numpy()], minlength=3).tolist() for name in dense
    }
    rows = rows.filter(pl.Series(split == 0)) if counting else rows
    with pa.ipc.new_file(folder / "entries.arrow", _ENTRIES, options=IPC_OPTIONS) as writer:
        for number, (table, names) in enumerate(coded_columns(spec).items()):
            values = chunk.values(number)
            counts = np.zeros(len(values) + 1, np.int64)
            for name in names if counting else ():
                counts += np.bincount(flatten(rows[name])[0].to_numpy(), minlength=len(counts))
            if table == GROUP:
                counts[:] = 1  # groups of all splits are numbered
            bounds = [
                0,
                *values.search_sorted(pl.Series(splitters[table], dtype=pl.String), "left"),
                len(values),
            ]
            batch = pa.record_batch([values.to_arrow().cast(pa.large_string()), counts[1:]], _ENTRIES)
            for first, last in itertools.pairwise(bounds):
                writer.write_batch(batch.slice(first, last - first))
    sums = {}
    for feature in spec.features:
        if feature.transform == "standardize" and counting:
            numbers = rows[feature.name].drop_nulls().to_numpy()
            powers = (_exact_sum(numbers), _exact_sum(numbers**2))
            sums[feature.name] = [len(numbers), *(total.as_integer_ratio() for total in powers)]
    facts = {"splits": np.bincount(split, minlength=3).tolist(), "sums": sums, "missing": missing}
    write_facts(folder, facts)


def _exact_sum(values: np.ndarray) -> Fraction:
    """The sum of float64 without rounding, so that it doesn't depend on how rows are cut into chunks."""
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    found, inverse = np.unique(exponents, return_inverse=True)
    # halves of 27 bits: their sums over up to 2**26 rows are exact in float64
    high = np.bincount(inverse, weights=whole >> 27, minlength=len(found))
    low = np.bincount(inverse, weights=whole & (2**27 - 1), minlength=len(found))
    sums = (
        (int(upper) * 2**27 + int(lower)) * Fraction(2) ** (int(e) - 53)
        for upper, lower, e in zip(high, low, found, strict=True)
    )
    return sum(sums, Fraction(0))


class Keys(NamedTuple):
    """The keys of given vectors that are in a range of values, [first, last)."""

    path: Path
    first: str | None
    last: str | None

    def read(self) -> pl.Series:
        """The keys, text in order."""
        keys = open_vectors(self.path).keys
        start = 0 if self.first is None else int(keys.search_sorted(self.first, "left"))
        stop = len(keys) if self.last is None else int(keys.search_sorted(self.last, "left"))
        return keys[start:stop]


def number_values(
    folder: Path, counted: Sequence[Path], batch: int, min_count: int, given: Keys | Known | None = None
) -> None:
    """ids.arrow (a batch a chunk: the number of each of its values); facts.json: how many values are kept.

    Kept are the keys given, or the values seen at least `min_count` times in train, beside those known (of which
    others are kept only if these grow): kept.arrow, with their counts. The number of a known value is its id, that of
    the i-th one kept is -i, and 0 that of others. added.arrow: how often train has the known ones, if these grow.
    """
    parts = [read_batch(path / "entries.arrow", batch) for path in counted]
    entries = pl.DataFrame(pa.Table.from_batches(parts))
    lengths = [part.num_rows for part in parts]
    del parts
    known = isinstance(given, Known) and not given.grows
    counts = entries.clear() if known else entries.group_by("value").agg(pl.col("count").sum())
    facts = {}
    if isinstance(given, Keys):
        kept = given.read().alias("value").to_frame().join(counts, on="value", how="left")
        kept = kept.with_columns(pl.col("count").fill_null(0))
        common = counts.join(kept, on="value", how="semi").height
        facts = {"without_key": counts.height - common, "without_value": kept.height - common}
    else:
        kept = counts.filter(pl.col("count") >= min_count)
    numbers = pl.DataFrame(schema={"value": pl.String, "id": pl.Int64})
    if isinstance(given, Known):
        numbers = given.read()
        if given.grows:
            added = (
                counts.filter(pl.col("count") > 0).join(numbers, on="value").select("id", "count").sort("id")
            )
            with RowWriter(folder / "added.arrow", ADDED) as of_known:
                of_known.write(added.to_arrow().cast(ADDED))
            kept = kept.join(numbers, on="value", how="anti")
    kept = kept.sort("value")
    with RowWriter(folder / "kept.arrow", _ENTRIES) as of_kept:
        of_kept.write(kept.to_arrow().cast(_ENTRIES))
    of_kept_values = kept.select("value", id=-pl.int_range(1, pl.len() + 1))
    numbers = pl.concat([numbers, of_kept_values])
    ids = entries.select("value").join(numbers, on="value", how="left", maintain_order="left")["id"]
    array = ids.fill_null(0).to_numpy()
    with pa.ipc.new_file(folder / "ids.arrow", _IDS, options=IPC_OPTIONS) as writer:
        for part in np.split(array, np.cumsum(lengths)[:-1]):
            writer.write_batch(pa.record_batch([part], _IDS))
    write_facts(folder, {"kept": kept.height, **facts})


def write_vocabulary(folder: Path, numbered: Sequence[Path]) -> None:
    """vocabulary.parquet: the values kept in all ranges of a table; facts.json: its digest."""
    writer = VocabularyWriter(folder / "vocabulary.parquet")
    writer.write_kept(numbered)
    write_facts(folder, writer.close())
