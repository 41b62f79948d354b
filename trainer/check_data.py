"""Whether data means the same to a run's model: its features, its tables, and what turned raw values into ids.

Compared are the digests in `schema.yaml`; the files are opened only to name the first difference.
"""

import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cetnet.models.schema import Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.yaml_files import read_yaml

_BATCH_ROWS = 1 << 16
_LIKE = "encode the raw rows as the run's were: `cetnet prepare csv|parquet ... --like {run}`"
_GROWN = (
    "; the model's table is as large as the run's: train anew on this data, or prepare it with --like {run}, "
    "without --grow"
)


def check_same_meaning(run: Path, schema: Schema, data: Path, now: Schema) -> None:
    """Raise UserError, with the first difference, if the model of a run takes rows of this data for others.

    Args:
        run: folder of the run.
        schema: its schema.
        data: folder of the data.
        now: its schema.
    """
    _check_features(schema, data, now)
    if other := other_values(run, schema.vocabularies, data, now.vocabularies):
        remedy = _GROWN if other.grown else f"; {_LIKE}"
        raise UserError(f"{data}: {other.what}{remedy.format(run=run)}")
    if schema.tables != now.tables:
        both = schema.tables | now.tables
        table = next(name for name in both if schema.tables.get(name) != now.tables.get(name))
        rows, others = (of.get(table, 0) for of in (now.tables, schema.tables))
        raise UserError(
            f"{data}: table {table!r} has {rows:,} rows here and {others:,} in the run; {_likely(run)}"
        )
    if different := set(schema.id_ranges.items()) ^ set(now.id_ranges.items()):
        table = min(different)[0]
        raise UserError(
            f"{data}: table {table!r} is not hashed as in the run; use the run's schema.yaml, and raw ids if it is"
        )
    _check_known(run, schema, data, now)
    if schema.encoding != now.encoding:
        raise UserError(f"{data}: {other_encoding(run, data)}; {_LIKE.format(run=run)}")


def _likely(run: Path) -> str:
    return f"prepare it with --like {run}; if its ids are the run's for sure, give it the run's schema.yaml"


def _check_known(run: Path, schema: Schema, data: Path, now: Schema) -> None:
    """Either both say what ids and numbers mean, or none does, as of Parquet files of one's own."""
    sides = (
        (
            now,
            schema,
            "the run",
            f"score what it was trained on, or train again; if the ids of {data} are the "
            "run's for sure, take `vocabularies` and `encoding` out of its schema.yaml",
        ),
        (schema, now, "the data", _likely(run)),
    )
    for known, lacking, which, remedy in sides:
        tables = set(known.vocabularies or {}) - set(lacking.vocabularies or {})
        what = f"which values the ids of table {min(tables)!r} stand for" if tables else None
        if what is None and known.encoding and not lacking.encoding:
            what = "how numbers were made of raw values"
        if what:
            raise UserError(
                f"{data}: the schema.yaml of {which} doesn't say {what}, as of an earlier version or made "
                f"elsewhere, so they may be others; {remedy}"
            )


def _check_features(run: Schema, path: Path, data: Schema) -> None:
    inputs = {feature.name: (feature.kind, feature.table, feature.max_length) for feature in run.features}
    others = {feature.name: (feature.kind, feature.table, feature.max_length) for feature in data.features}
    for name in {**inputs, **others}:
        if inputs.get(name) != others.get(name):
            raise UserError(
                f"{path}: feature {name!r} is not as in the run; score data of the run's own schema"
            )
    if list(inputs) != list(others):
        raise UserError(f"{path}: the features are in another order than in the run; use its schema.yaml")


class OtherValues(NamedTuple):
    """The first difference of two sets of vocabularies, in words; `grown`: it is values behind those of the run."""

    what: str
    grown: bool


def other_values(
    run: Path, before: Mapping[str, str] | None, data: Path, now: Mapping[str, str] | None
) -> OtherValues | None:
    """Where ids stand for other values than in a run, of tables that both have digests of; None if nowhere.

    Memory: a batch of each file. Raises UserError for a vocabulary that can't be read.
    """
    before, now = before or {}, now or {}
    changed = [table for table in before if now.get(table, before[table]) != before[table]]
    found = [
        _first_difference(table, *(folder / "vocabularies" for folder in (run, data))) for table in changed
    ]
    # What isn't grown can't be used by growing the model either: it is the mistake to be told of.
    return next((each for each in found if not each.grown), found[0] if found else None)


def _first_difference(table: str, run: Path, data: Path) -> OtherValues:
    files = [folder / f"{table}.parquet" for folder in (run, data)]
    if missing := next((file for file in files if not file.exists()), None):
        return OtherValues(
            f"the ids of table {table!r} stand for other values than in the run, as of data prepared anew (which, "
            f"{missing} would tell, which is not there)",
            grown=False,
        )
    theirs, ours = (_read(file) for file in files)
    there, here = (_num_values(file) for file in files)
    for one, other in _paired(theirs, ours):
        different = pc.or_(
            pc.not_equal(_of_lines(one["value"]), _of_lines(other["value"])),
            pc.not_equal(one["id"], other["id"]),
        )
        if (at := pc.index(different, True).as_py()) >= 0:
            counts = "" if here == there else f" ({here:,} values here and {there:,} there)"
            (id_there, value_there), (id_here, value_here) = (
                (batch["id"][at].as_py(), batch["value"][at].as_py()) for batch in (one, other)
            )
            if id_there == id_here:
                what = (
                    f"id {id_here} of table {table!r} is {_shown(value_here)} here and {_shown(value_there)}"
                )
            else:
                what = f"value {_shown(value_here)} of table {table!r} has id {id_here} here, where id {id_there} is"
            return OtherValues(f"{what} in the run{counts}", grown=False)
    if here > there:
        what = (
            f"table {table!r} has {here:,} values here and {there:,} in the run, the first {there:,} the same"
        )
        return OtherValues(what, grown=True)
    what = f"table {table!r} has {here:,} values here and {there:,} in the run"
    if here == there:
        what = f"the vocabulary of table {table!r} is not what its schema.yaml has a digest of: it was changed since"
    return OtherValues(what, grown=False)


def _paired(one: Iterator[pa.RecordBatch], other: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """The rows that both have, in batches of equal length."""
    streams = (one, other)
    left: list[pa.RecordBatch | None] = [None, None]
    while True:
        for place, stream in enumerate(streams):
            if not left[place]:
                left[place] = next(stream, None)
        batches = [batch for batch in left if batch is not None]
        if len(batches) < 2:
            return
        rows = min(batch.num_rows for batch in batches)
        yield [batch.slice(0, rows) for batch in batches]
        left = [batch.slice(rows) for batch in batches]


def _read(file: Path) -> Iterator[pa.RecordBatch]:
    try:
        with file.open("rb") as opened, pq.ParquetFile(opened) as parquet:
            yield from (
                batch
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=["value", "id"])
                if batch.num_rows
            )
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{file}: cannot be read ({_first_line(error)}); restore it") from error


def _num_values(file: Path) -> int:
    try:
        with file.open("rb") as opened:
            return pq.read_metadata(opened).num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read ({_first_line(error)}); restore it") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _of_lines(values: pa.Array) -> pa.Array:
    """As digests take them: how a file ends its lines is nothing of a value with several."""
    return pc.replace_substring(values, "\r\n", "\n")


def _shown(value: str | None) -> str:
    short = reprlib.Repr()
    short.maxstring = 60
    return short.repr(value)


def other_encoding(run: Path, data: Path) -> str:
    """The first difference of two `encoding.yaml` with different digests, in words."""
    there, here = (_encoding(folder) for folder in (run, data))
    if there is None or here is None:
        folder = run if there is None else data
        return (
            f"numbers are not made of raw values as in the run (how, {folder / 'encoding.yaml'} would tell)"
        )
    moments = [of.get("moments") or {} for of in (here, there)]
    for name in {**moments[0], **moments[1]}:
        for what, ours, theirs in zip(
            ("mean", "standard deviation"), *(of.get(name, ["none"] * 2) for of in moments), strict=True
        ):
            if ours != theirs:
                return f"{name!r} is standardized with {what} {ours} here and {theirs} in the run"
    features = [_of_features(of) for of in (here, there)]
    for name, key in {**features[0], **features[1]}:
        values = [of.get((name, key), "the default") for of in features]
        if values[0] != values[1]:
            return f"{name!r} has {key} {values[0]} here and {values[1]} in the run"
    for key in ("null_values", "whole_floats", "separator"):
        values = [of["raw"].get(key, "the default") for of in (here, there)]
        if values[0] != values[1]:
            return f"{key} is {values[0]!r} here and {values[1]!r} in the run"
    for key in ("lowest", "transform"):
        if here.get(key) != there.get(key):
            return f"{key} is {here.get(key)!r} here and {there.get(key)!r} in the run (encoding.yaml)"
    return "numbers are not made of raw values as in the run (encoding.yaml)"


def _encoding(folder: Path) -> dict[str, Any] | None:
    file = folder / "encoding.yaml"
    if not file.exists():
        return None
    content = read_yaml(file)
    try:
        _of_features(content)
    except (LookupError, TypeError):
        raise UserError(f"{file}: damaged, or made elsewhere; restore it from the dataset") from None
    return content


def _of_features(encoding: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {
        (feature["name"], key): feature[key]
        for feature in encoding["raw"]["features"]
        for key in ("transform", "hash_function", "keep")
        if key in feature
    }
