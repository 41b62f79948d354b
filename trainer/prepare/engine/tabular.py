"""Click logs of any size, described by a raw schema (`RawSchema`), prepared within a memory limit.

`prepare_table` reads top to bottom: a map over chunks, a small reduce, the next map. The maps are the stages of
`preparation`, whose tasks run in processes of this machine or on a Dask cluster, and survive a kill (`tasks`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl

from cetnet.models.schema import Schema
from cetnet.trainer.data.data_files import Format, KeyValues
from cetnet.trainer.prepare.engine.agreement import check_groups
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.input_files import input_files
from cetnet.trainer.prepare.engine.layout import check_out, finish_dataset, publish
from cetnet.trainer.prepare.engine.preparation import Facts, Preparation, Vocabulary
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.splits import RandomSplit, Split, parse_split
from cetnet.trainer.prepare.engine.tasks import executor, identity, read_facts
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
    transform_name = f"{transform.__module__}.{transform.__qualname__}" if transform else None
    job = {
        "files": {name: [identity(path) for path in paths] for name, paths in files.items()},
        "vectors": {table: identity(path) for table, path in spec.pretrained.items()},
        "format": format,
        "spec": spec.model_dump(mode="json"),
        "split": repr(split),
        "keys": {str(path.resolve()): of_file for path, of_file in (keys or {}).items() if of_file},
        "transform": transform_name,
    }
    vector_sizes = {table: open_vectors(path).size for table, path in spec.pretrained.items()}
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
            preparation = Preparation(place, pool, spec, format, vector_sizes, keys or {})
            chunks, facts = preparation.read(files, transform)
            if not ungrouped:
                check_groups(spec, chunks, facts, raw)
            assign = split.fit(partial(_frames, spec, chunks)) if split else None
            splitters = preparation.splitters(facts)
            counted = preparation.count(chunks, splitters, assign)
            vocabularies = preparation.number(facts, splitters, counted)
            in_time_order = split is not None and split.in_time_order
            encoding, lowest = preparation.transforms(chunks, facts, counted, transform_name)
            slices, schema = preparation.encode(
                chunks, facts, counted, vocabularies, encoding.moments, lowest, in_time_order
            )
            digests = preparation.write_vocabularies(vocabularies)
            schema = schema.model_copy(update={"vocabularies": digests or None, "encoding": encoding.digest})
            statistics = preparation.write(slices, schema)
            preparation.write_vectors()
            md5_notes = preparation.compare_md5(md5 or {})
        notes = (
            *card.notes,
            *md5_notes,
            *_vector_notes(schema, vocabularies),
            *_notes(spec, facts),
            *_group_notes(schema, facts, split),
        )
        card = replace(card, split_rule=split.rule if split else card.split_rule, notes=notes)
        encoding.save(place.folder / "new")
        schema = finish_dataset(place.folder / "new", schema, statistics, card)
        publish(place.folder / "new", out)
    return schema


def prepare_tabular(
    format: Format,
    raw: Path,
    out: Path,
    schema_file: Path,
    split: str = "random:0.8,0.1,0.1",
    overwrite: bool = False,
    seed: int = 1,
    command: str | None = None,
    memory: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Schema:
    """Prepare a CSV or Parquet file, or a directory of them (`data_files`): `prepare_table`.

    A directory with files or subdirectories named train, validation and test is used as split there, and
    `split` is not. Else `random:0.8,0.1,0.1` splits by a seeded hash of the group (of the row number, where
    there is none), and `time:0.8,0.1,0.1` by the timestamp, with rows in time order.
    """
    spec = RawSchema.load(schema_file)
    found = input_files(raw, format)
    files = {name: [file.path for file in of_split] for name, of_split in found.items()}
    rule = parse_split(split, spec, seed) if "all" in files else None
    card = Card(
        title=f"{raw.name} ({format})",
        source=str(raw),
        command=command
        or f"prepare_tabular({format!r}, raw={str(raw)!r}, out={str(out)!r}, "
        f"schema_file={str(schema_file)!r}, split={split!r}, seed={seed})",
        seed=seed if rule is not None and not rule.in_time_order else None,
    )
    return prepare_table(
        spec,
        files,
        format,
        out,
        card,
        keys={file.path: file.keys for of_split in found.values() for file in of_split},
        split=rule,
        memory=memory,
        workers=workers,
        scheduler=scheduler,
        overwrite=overwrite,
        ungrouped=True,
    )


def _frames(spec: RawSchema, chunks: Sequence[Chunk], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    return (split_rows(chunk, spec, columns) for chunk in chunks)


def _vector_notes(schema: Schema, vocabularies: Mapping[str, Vocabulary]) -> list[str]:
    """Lines of the card: given vectors, and what has no partner."""
    notes = []
    for table, size in schema.pretrained.items():
        kept, ranges = vocabularies[table]
        of_ranges = [read_facts(numbered.path) for numbered in ranges]
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


def _notes(spec: RawSchema, facts: Sequence[Facts]) -> list[str]:
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
    for table in spec.vocabulary_tables:
        if table not in spec.pretrained and (least := spec.table_min_count(table)) > 1:
            rare = f"values seen less than {least} times in train, in the whole table, became id 0"
            notes.setdefault(rare, []).append(table)
    return [f"{', '.join(f'`{name}`' for name in names)}: {note}." for note, names in notes.items()]
