"""Click logs of any size, described by a raw schema (`RawSchema`), prepared within a memory limit.

`prepare_table` reads top to bottom: a map over chunks, a small reduce, the next map. The maps are the stages of
`preparation`, whose tasks run in processes of this machine or on a Dask cluster, and survive a kill (`tasks`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import polars as pl

from cetnet.models.schema import Schema
from cetnet.trainer.console import console
from cetnet.trainer.data.data_files import Format, KeyValues
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.agreement import check_forms, check_groups
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.drift import drift, warning
from cetnet.trainer.prepare.engine.input_files import input_files
from cetnet.trainer.prepare.engine.layout import check_out, finish_dataset, publish
from cetnet.trainer.prepare.engine.like import Like, load_like, present_roles
from cetnet.trainer.prepare.engine.preparation import Preparation, Vocabulary
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from cetnet.trainer.prepare.engine.splits import RandomSplit, Split, parse_split, splits_of
from cetnet.trainer.prepare.engine.statistics import SplitStatistics
from cetnet.trainer.prepare.engine.tasks import executor, identity, read_facts
from cetnet.trainer.prepare.engine.transforms import Facts, fit_transforms
from cetnet.trainer.prepare.engine.typed import Chunk, Transform
from cetnet.trainer.prepare.engine.vectors import open_vectors
from cetnet.trainer.prepare.engine.vocabulary import split_rows
from cetnet.trainer.prepare.engine.workplace import workplace


def prepare_table(
    spec: RawSchema,
    files: Mapping[str, Sequence[Path]],
    format: Format,
    out: Path,
    card: Card,
    *,
    keys: Mapping[Path, KeyValues] | None = None,
    split: Split | None = None,
    transform: Transform | None = None,
    md5: Mapping[Path, str] | None = None,
    memory: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
    ungrouped: bool = False,
    like: Like | None = None,
    labelled: bool = True,
) -> Schema:
    """Prepare raw files of any size as `out`; the same bytes for any memory, workers, chunks and interruptions.

    Args:
        spec: the raw columns.
        files: {"all": files}, divided by `split`; or by the names of SPLITS, and a file may serve two of them.
        format: "csv" (also compressed) or "parquet".
        out: directory to make; unfinished work lies in `.NAME.work` beside it, see `tasks.work_folder`.
        card: what the data card says; the rule of a `split`, and notes of what was found, are added.
        keys: columns of text with one value in each file, or null, that its directory names.
        split: for "all": `parse_split("time:0.8,0.1,0.1", spec, seed)`, or any `Split`.
        transform: a module-level function from the raw columns of a chunk (CSV: text) to those that `spec` names,
            with the same rows.
        md5: those published of raw files; the data card says whether they are these.
        memory: limit for all processes together, such as "4GB"; default half of the machine's. With a scheduler the
            limit of each of its workers; default: the one they were started with.
        workers: processes; default: a core each, fewer if memory is short.
        scheduler: address of a Dask scheduler whose workers see the same files and run the tasks.
        overwrite: replace an existing dataset, and the unfinished work of another preparation.
        ungrouped: keep rows without a group, which are a UserError otherwise.
        like: whose vocabularies and transforms the rows are read by, and whose raw schema `spec` is.
        labelled: whether there is a label, which new rows may not have yet.

    Columns: label float32 (raw 0 or 1, or -1 or 1); group int64 (null for rows without one; raw integers as they are
    if all are written as an int64 is, else all are numbered from 1 in sorted order); timestamp int64 seconds; weight
    float32; ids int32 in each table's vocabulary of train, in the order of the values (compared as text, so 7 and
    "7" are one value), or hashes, or raw ids where `tables` gives their rows; dense float32, transformed, missing
    values 0 after the transform.

    Raises UserError with file, column and row (1 is the first data row) for values that are not what the schema says,
    and for missing columns, an unusable split, too little memory or disk, and an existing `out`.
    """
    check_out(out, overwrite)
    raw = [path for paths in files.values() for path in paths]
    job = {
        "files": {name: [identity(path) for path in paths] for name, paths in files.items()},
        "vectors": {table: identity(path) for table, path in spec.pretrained.items()},
        "format": format,
        "spec": spec.model_dump(mode="json"),
        "split": repr(split),
        "keys": {str(path.resolve()): of_file for path, of_file in (keys or {}).items() if of_file},
        "transform": f"{transform.__module__}.{transform.__qualname__}" if transform else None,
        "like": like.identity if like else None,
    }
    vector_sizes = {table: open_vectors(path).size for table, path in spec.pretrained.items()}
    vector_sizes |= like.schema.pretrained if like else {}
    keys = keys or {}
    if not labelled:
        keys = {path: {**keys.get(path, {}), spec.label: "0"} for path in raw}  # not written
    with workplace(
        out,
        raw,
        job,
        packed=format == "parquet",
        memory=memory,
        workers=workers,
        scheduler=scheduler,
        overwrite=overwrite,
    ) as place:
        with executor(place.resources) as pool:
            splits = splits_of(split) if split else tuple(files)
            preparation = Preparation(
                place, pool, spec, format, vector_sizes, keys, splits, labelled=labelled, like=like
            )
            made = _make(preparation, files, split, transform, ungrouped)
            md5_notes = preparation.compare_md5(md5 or {})
        notes = (
            *card.notes,
            *md5_notes,
            *_vector_notes(made.schema, made.vocabularies),
            *(_like_notes(like, made.vocabularies) if like else ()),
            *_notes(spec, made.facts, like),
            *_group_notes(made.schema, made.facts, split),
            *_lowest_notes(made.encoding, made.lowest),
        )
        card = replace(card, split_rule=split.rule if split else card.split_rule, notes=notes)
        made.encoding.save(place.folder / "new")
        schema = finish_dataset(place.folder / "new", made.schema, made.statistics, card)
        publish(place.folder / "new", out)
    if card.training is not None and (jumps := warning(drift(schema, card.training, made.statistics))):
        console.print(f"warning: {jumps}; {out / 'README.md'} has all columns")
    return schema


class _Made(NamedTuple):
    """What the stages of a preparation made, beside the files of the splits."""

    schema: Schema
    encoding: RawEncoding
    vocabularies: Mapping[str, Vocabulary]
    statistics: Mapping[str, SplitStatistics]
    facts: Sequence[Facts]
    lowest: Mapping[int, float]  # of each file, for log_from_lowest


def _make(
    preparation: Preparation,
    files: Mapping[str, Sequence[Path]],
    split: Split | None,
    transform: Transform | None,
    ungrouped: bool,
) -> _Made:
    """The stages, one after the other."""
    spec, like = preparation.spec, preparation.like
    raw = [path for paths in files.values() for path in paths]
    chunks, facts = preparation.read(files, transform)
    known = preparation.known()
    check_forms(spec, chunks, facts, raw, like.forms(known) if like else {})
    if not ungrouped:
        check_groups(spec, chunks, facts, raw)
    assign = split.fit(partial(_frames, spec, chunks)) if split else None
    splitters = preparation.splitters(facts, known)
    counted = preparation.count(chunks, splitters, assign)
    vocabularies = preparation.number(facts, splitters, counted, known)
    if like is None:
        name = f"{transform.__module__}.{transform.__qualname__}" if transform else None
        encoding, lowest = fit_transforms(spec, chunks, facts, counted, name)
    else:
        encoding, lowest = like.encoding, {chunk.file: like.encoding.lowest or 0.0 for chunk in chunks}
    slices, schema = preparation.encode(
        chunks,
        facts,
        counted,
        vocabularies,
        encoding.moments,
        lowest,
        split is not None and split.in_time_order,
    )
    digests = preparation.write_vocabularies(vocabularies)
    schema = schema.model_copy(update={"vocabularies": digests or None, "encoding": encoding.digest})
    statistics = preparation.write(slices, schema)
    preparation.count_missing(counted, statistics)
    preparation.write_vectors()
    return _Made(schema, encoding, vocabularies, statistics, facts, lowest)


def prepare_tabular(
    format: Format,
    raw: Path,
    out: Path,
    schema_file: Path | None = None,
    split: str | None = None,
    overwrite: bool = False,
    seed: int = 1,
    command: str | None = None,
    memory: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    like: Path | None = None,
    grow: bool = False,
) -> Schema:
    """Prepare a CSV or Parquet file, or a directory of them (`data_files`): `prepare_table`.

    A directory with files or subdirectories named train, validation and test is used as split there, and
    `split` is not. Else `random:0.8,0.1,0.1` (the default) splits by a seeded hash of the group (of the row number,
    where there is none), `time:0.8,0.1,0.1` by the timestamp, with rows in time order, and `train` is all rows.

    With `like` instead of a schema, rows are read as those of that dataset, or of the one that run was trained on: a
    value has the id that it has there, and others id 0 (or with `grow`, if train has them min_count times, new ids).
    Then `split` is `test` by default (`train` with `grow`), and label, weight, group and time may be missing.
    """
    found = input_files(raw, format, some=like is not None)
    files = {name: [file.path for file in of_split] for name, of_split in found.items()}
    keys = {file.path: file.keys for of_split in found.values() for file in of_split}
    of_like, absent = None, list[str]()
    if like is None:
        if schema_file is None or grow:
            raise UserError(
                "--grow needs --like"
                if grow
                else "give --schema, or --like for rows as those of an earlier dataset"
            )
        spec = RawSchema.load(schema_file)
    else:
        if schema_file is not None:
            raise UserError("--schema and --like: give one of them, since --like has a schema of its own")
        if like.resolve() == out.resolve():
            raise UserError(f"--like {like} is --out, too: give another directory")
        of_like = load_like(like, grow)
        spec, absent = present_roles(of_like.encoding.raw, list(keys), format, keys)
    rule = _rule(split, spec, seed, of_like) if "all" in files else None
    if grow:
        _check_growth(spec, absent, splits_of(rule) if rule else tuple(files))
    card = Card(
        title=f"{raw.name} ({format})",
        source=str(raw),
        command=command
        or f"prepare_tabular({format!r}, raw={str(raw)!r}, out={str(out)!r}, "
        + (f"like={str(like)!r}, grow={grow}" if like else f"schema_file={str(schema_file)!r}")
        + f", split={split!r}, seed={seed})",
        seed=seed if isinstance(rule, RandomSplit) else None,
        notes=tuple(_absent_notes(of_like, absent)) if of_like else (),
        like=str(like) if like else None,
        training=of_like.training if of_like else None,
    )
    return prepare_table(
        spec,
        files,
        format,
        out,
        card,
        keys=keys,
        split=rule,
        memory=memory,
        workers=workers,
        scheduler=scheduler,
        overwrite=overwrite,
        ungrouped=True,
        like=of_like,
        labelled="label" not in absent,
    )


def _rule(split: str | None, spec: RawSchema, seed: int, like: Like | None) -> Split:
    """The rule of --split, or the default one."""
    if like is not None:
        return parse_split(split or ("train" if like.grow else "test"), spec, seed)
    rule = parse_split(split or "random:0.8,0.1,0.1", spec, seed)
    if "train" not in splits_of(rule):
        raise UserError(
            f"--split {split}: vocabularies are made of the rows of train: give --split train, or --like for the "
            "vocabularies of an earlier dataset"
        )
    return rule


def _check_growth(spec: RawSchema, absent: Sequence[str], splits: Sequence[str]) -> None:
    if "train" not in splits:
        raise UserError("--grow: values get ids by the rows of train, and there are none; leave out --grow")
    if "label" in absent:
        raise UserError(
            f"--grow: no column {spec.label!r} with the label, which the rows that a model is trained on need"
        )


def _absent_notes(like: Like, absent: Sequence[str]) -> list[str]:
    """Lines of the card: roles that the rows have no column for."""
    without = {
        "label": "they can be scored (`cetnet predict`), not evaluated",
        "group": "there is no gAUC",
        "timestamp": "nothing is known of their time",
        "weight": "each counts 1",
    }
    return [
        f"The rows have no column `{getattr(like.encoding.raw, role)}` ({role}): {without[role]}."
        for role in absent
    ]


def _like_notes(like: Like, vocabularies: Mapping[str, Vocabulary]) -> list[str]:
    """Lines of the card: whose ids the rows have, and which are new."""
    notes = [f"Ids, transforms and tables are those of {like.folder}."]
    for table in like.growing:
        before, now = like.schema.tables[table] - 1, vocabularies[table].kept
        new = f"{now - before:,} new values got ids from {before + 1} on" if now > before else "no new values"
        notes.append(f"`{table}`: {before:,} values kept their ids, {new}.")
    if like.grow and like.schema.pretrained:
        tables = ", ".join(f"`{table}`" for table in like.schema.pretrained)
        notes.append(f"{tables}: tables of given vectors, which can't grow.")
    return notes


def _frames(spec: RawSchema, chunks: Sequence[Chunk], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    return (split_rows(chunk, spec, columns) for chunk in chunks)


def _vector_notes(schema: Schema, vocabularies: Mapping[str, Vocabulary]) -> list[str]:
    """Lines of the card: given vectors, and what has no partner."""
    notes = []
    for table, size in schema.pretrained.items():
        kept, ranges = vocabularies[table]
        of_ranges = [read_facts(numbered.path) for numbered in ranges]
        if any("without_key" not in fact for fact in of_ranges):
            continue  # known ones
        without = [sum(fact[key] for fact in of_ranges) for key in ("without_value", "without_key")]
        notes.append(
            f"`{table}`: given vectors of {size} numbers, of {kept:,} values; {without[0]:,} of them are in no row, "
            f"and {without[1]:,} values of rows have no vector (id 0)."
        )
    return notes


def _group_notes(schema: Schema, facts: Sequence[Facts], split: Split | None) -> list[str]:
    """Lines of the card: rows without a group."""
    rows = sum(fact["without_group"]["rows"] for fact in facts)
    if not rows:
        return []
    each = ", each split by its row number" if isinstance(split, RandomSplit) and split.group else ""
    return [f"`{schema.group}`: {rows:,} rows have no group (null){each}; gAUC leaves them out."]


def _lowest_notes(encoding: RawEncoding, lowest: Mapping[int, float]) -> list[str]:
    """Lines of the card: files whose numbers mean another than the same numbers of new rows will."""
    low, high = min(lowest.values()), max(lowest.values())
    if encoding.lowest is None or low == high:
        return []
    return [
        f"log_from_lowest: the lowest value of a file, which its rows are shifted by, is from {low:g} to {high:g}; "
        f"new rows (`--like`, raw ones, those of an exported model) are by {encoding.lowest:g}, so that they differ."
    ]


def _notes(spec: RawSchema, facts: Sequence[Facts], like: Like | None) -> list[str]:
    """Lines of the card: missing dense values, transforms, min_counts and hashes."""
    notes: dict[str, list[str]] = {}
    for feature in spec.features:
        if count := sum(fact["missing"].get(feature.name, 0) for fact in facts):
            when = "before" if feature.transform == "log_from_lowest" else "after"
            became = f"{count:,} missing values became 0 ({when} the transform)"
            notes.setdefault(became, []).append(feature.name)
        if feature.transform != "none":
            notes.setdefault(f"transform {feature.transform}", []).append(feature.name)
        if feature.hash is not None:
            hashes = f"ids are hashes ({feature.hash_function}) of the values"
            notes.setdefault(hashes, []).append(feature.name)
    new = "new " if like else ""
    for table in like.growing if like else spec.vocabulary_tables:
        if table not in spec.pretrained and (least := spec.table_min_count(table)) > 1:
            rare = f"{new}values seen less than {least} times in train, in the whole table, became id 0"
            notes.setdefault(rare, []).append(table)
    return [f"{', '.join(f'`{name}`' for name in names)}: {note}." for note, names in notes.items()]
