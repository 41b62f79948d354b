"""Click logs of any size, described by a raw schema (`RawSchema`), prepared within a memory limit.

`prepare_table` reads top to bottom: a map over chunks, a small reduce, the next map. The maps are the tasks of
`stages`, which run in processes of this machine or on a Dask cluster, and survive a kill (`tasks`).
"""

import math
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import polars as pl

from cetnet.models.schema import Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import stages
from cetnet.trainer.prepare.engine.card import Card, SplitStatistics
from cetnet.trainer.prepare.engine.chunks import Format, Unit, is_compressed, units
from cetnet.trainer.prepare.engine.layout import (
    ROWS_PER_FILE,
    SPLITS,
    check_out,
    check_split_rows,
    finish_dataset,
    part_name,
    publish,
)
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.splits import Split, parse_split
from cetnet.trainer.prepare.engine.stages import GROUP, Chunk, Encoding, Numbered, Slice, Transform
from cetnet.trainer.prepare.engine.tasks import (
    Plan,
    Resources,
    Task,
    executor,
    find_resources,
    identity,
    run_tasks,
    work_folder,
)
from cetnet.trainer.prepare.engine.vectors import open_vectors
from cetnet.trainer.prepare.sources.published import Published

__all__ = ["Format", "RawFeature", "RawSchema", "Split", "parse_split", "prepare_table", "prepare_tabular"]

SUFFIXES = {"csv": (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz"), "parquet": (".parquet",)}


def prepare_table(
    spec: RawSchema,
    files: Mapping[str, Sequence[Path]],
    format: Format,
    out: Path,
    *,
    split: Split | None = None,
    split_rule: str = "the given files",
    transform: Transform | None = None,
    title: str,
    source: str,
    command: str,
    notes: Sequence[str] = (),
    md5: Mapping[Path, str] | None = None,
    seed: int | None = None,
    published: Published | None = None,
    memory: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
) -> Schema:
    """Prepare raw files of any size as `out`; the same bytes for any memory, workers, chunks and interruptions.

    Args:
        spec: the raw columns.
        files: {"all": files}, divided by `split`; or by the names of SPLITS, and a file may serve two of them.
        format: "csv" (also gzipped) or "parquet".
        out: directory to make; unfinished work lies in `.NAME.work` beside it, see `tasks.work_folder`.
        split: for "all": `parse_split("time:0.8,0.1,0.1", spec, seed)`, or any `Split`.
        split_rule: in words, how the files are split, for the data card.
        transform: a module-level function from the raw columns of a chunk (CSV: text) to those that `spec` names,
            with the same rows.
        title, source, command, notes, seed, published: of the data card.
        md5: those published of raw files; the data card says whether they are these.
        memory: limit for all processes together, such as "4GB"; default half of the machine's. With a scheduler the
            limit of each of its workers; default: the one they were started with.
        workers: processes; default: a core each, fewer if memory is short.
        scheduler: address of a Dask scheduler whose workers see the same files and run the tasks.
        overwrite: replace an existing dataset, and the unfinished work of another preparation.

    Columns: label float32 (raw 0 or 1); group int64 (raw integers as they are if all are, else all are numbered from
    1 in sorted order); timestamp int64 seconds; weight float32; ids int32 in each table's vocabulary of train, in
    the order of the values (compared as text, so 7 and "7" are one value), or hashes, or raw ids where `tables` gives
    their rows; dense float32, transformed, missing values 0 after the transform.

    Raises UserError with file, column and row (1 is the first data row) for values that are not what the schema says,
    and for missing columns, an unusable split, too little memory or disk, and an existing `out`.
    """
    check_out(out, overwrite)
    resources = find_resources(memory, workers, scheduler)
    check_disk(out, _all(files), packed=format == "parquet")
    job = {
        "files": {name: [identity(path) for path in paths] for name, paths in files.items()},
        "vectors": {table: identity(path) for table, path in spec.pretrained.items()},
        "format": format,
        "spec": spec.model_dump(mode="json"),
        "split": repr(split),
        "transform": f"{transform.__module__}.{transform.__qualname__}" if transform else None,
    }
    vector_sizes = {table: open_vectors(path).size for table, path in spec.pretrained.items()}
    with work_folder(out, job, resources.plan(), overwrite) as (work, plan):
        resources = resources.fit(plan)
        if not resources.scheduler and sum(path.stat().st_size for path in _all(files)) <= plan.chunk_bytes:
            resources = Resources(1, resources.share)
        with executor(resources) as pool:
            preparation = _Preparation(work, plan, pool, resources.workers, spec, format, vector_sizes)
            chunks, facts = preparation.read(files, transform)
            assign = split.fit(partial(_frames, spec, chunks)) if split else None
            counted = preparation.count(chunks, facts, assign)
            tables = preparation.number(facts, counted)
            in_time_order = split is not None and split.in_time_order
            slices, schema = preparation.encode(chunks, facts, counted, tables, in_time_order)
            statistics = preparation.write(slices, schema)
            preparation.write_vectors()
            md5_notes = preparation.compare_md5(md5 or {})
        missing = {
            f.name: sum(fact["missing"][f.name] for fact in facts) for f in spec.features if f.kind == "dense"
        }
        schema = finish_dataset(
            work / "new",
            schema,
            statistics,
            Card(
                title=title,
                source=source,
                split_rule=split.rule if split else split_rule,
                command=command,
                seed=seed,
                notes=(*notes, *md5_notes, *_vector_notes(schema, tables), *_notes(spec, missing)),
                published=published,
            ),
        )
        publish(work / "new", out)
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
    """Prepare a CSV or Parquet file, or a directory of them (read in the order of their names): `prepare_table`.

    A directory with files or subdirectories named train, validation and test is used as split there, and
    `split` is not. Else `random:0.8,0.1,0.1` splits by a seeded hash of the group (of the row number, where
    there is no group), and `time:0.8,0.1,0.1` by the timestamp, with rows in time order.
    """
    spec = RawSchema.load(schema_file)
    files = _input_files(raw, format)
    rule = parse_split(split, spec, seed) if "all" in files else None
    return prepare_table(
        spec,
        files,
        format,
        out,
        split=rule,
        title=f"{raw.name} ({format})",
        source=str(raw),
        command=command
        or f"prepare_tabular({format!r}, raw={str(raw)!r}, out={str(out)!r}, "
        f"schema_file={str(schema_file)!r}, split={split!r}, seed={seed})",
        seed=seed if rule is not None and not rule.in_time_order else None,
        memory=memory,
        workers=workers,
        scheduler=scheduler,
        overwrite=overwrite,
    )


def _input_files(raw: Path, format: Format) -> dict[str, list[Path]]:
    """Files by split; only "all" where there is nothing split already."""
    if raw.is_file():
        return {"all": [raw]}
    if not raw.is_dir():
        raise UserError(f"{raw} does not exist: give a {format} file or a directory of them")

    def data_files(directory: Path) -> list[Path]:
        return sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIXES[format]))

    given: dict[str, list[Path]] = {}
    for name in SPLITS:
        single = [raw / (name + suffix) for suffix in SUFFIXES[format] if (raw / (name + suffix)).is_file()]
        found = data_files(raw / name) if (raw / name).is_dir() else single
        if found:
            given[name] = found
    if len(given) == len(SPLITS):
        return given
    if given:
        missing = ", ".join(name for name in SPLITS if name not in given)
        raise UserError(f"{raw} is split, but has no {format} data for {missing}: add it, or give one file")
    if files := data_files(raw):
        return {"all": files}
    raise UserError(f"{raw} holds no {format} files ({', '.join(SUFFIXES[format])})")


def _all(files: Mapping[str, Sequence[Path]]) -> list[Path]:
    return [path for paths in files.values() for path in paths]


def check_disk(out: Path, files: Iterable[Path], packed: bool) -> None:
    """UserError if the disk has no room for 1.5 times the text in `files`, 6 times what is compressed or `packed`.

    So much do a work folder and the result take up. Nothing is checked where a work folder is already.
    """
    need = sum(
        int(path.stat().st_size * (6 if packed or is_compressed(path) else 1.5))
        for path in files
        if path.exists()
    )
    parent = next(path for path in out.absolute().parents if path.exists())
    work = out.with_name(f".{out.name}.work")
    if not work.exists() and (free := shutil.disk_usage(parent).free) < need:
        raise UserError(
            f"{parent} has {free / 1e9:.1f} GB free, and the preparation may need {need / 1e9:.1f} GB: "
            "give a directory on another disk"
        )


def _frames(spec: RawSchema, chunks: Sequence[Chunk], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    return (stages.split_rows(chunk, spec, columns) for chunk in chunks)


@dataclass(frozen=True)
class _Preparation:
    """The stages of one preparation, which share these."""

    work: Path
    plan: Plan
    pool: Executor
    workers: int
    spec: RawSchema
    format: Format
    vector_sizes: Mapping[str, int]

    def _run(self, stage: str, unit: str, function: Any, tasks: Sequence[Task]) -> list[Path]:
        run_tasks(self.pool, self.workers, f"{stage} ({unit})", function, tasks)
        return [task.out for task in tasks]

    def read(
        self, files: Mapping[str, Sequence[Path]], transform: Transform | None
    ) -> tuple[list[Chunk], list[dict[str, Any]]]:
        """Typed chunks in the order of the raw rows, and the facts of each."""
        spec, plan = self.spec, self.plan
        paths = [
            (None if name == "all" else SPLITS.index(name), path) for name in files for path in files[name]
        ]
        to_cut = [
            Task(self.work / "cut" / f"{number:06d}", path.stat().st_size >> 20, (path, spec, plan))
            for number, (_, path) in enumerate(paths)
            if self.format == "csv" and not is_compressed(path) and path.stat().st_size > plan.chunk_bytes
        ]
        cuts = {
            int(folder.name): stages.facts(folder) for folder in self._run("cut", "MB", stages.cut, to_cut)
        }
        todo: list[Unit] = [
            unit
            for number, (split, path) in enumerate(paths)
            for unit in units(path, number, split, self.format, spec, cuts.get(number, []), plan.chunk_bytes)
        ]
        tasks = [
            Task(
                self.work / "typed" / f"{number:06d}",
                max(1, unit.size >> 20),
                (unit, self.format, spec, transform, plan),
            )
            for number, unit in enumerate(todo)
        ]
        try:
            folders = self._run("read", "MB", stages.typed, tasks)
        except stages.BadValue as error:
            unit, column, row, expected = error.args
            # all units before it are whole
            before = sum(
                fact["rows"]
                for task in tasks[: todo.index(unit)]
                if task.arguments[0].file == unit.file
                for fact in stages.facts(task.out)
            )
            raise stages.BadValue(unit, column, row + before, expected) from error
        chunks, facts = [], []
        row = 0
        for unit, folder in zip(todo, folders, strict=True):
            for number, fact in enumerate(stages.facts(folder)):
                chunks.append(Chunk(folder / f"{number:06d}", unit.file, unit.split, row, fact["rows"]))
                facts.append(fact)
                row += fact["rows"]
        if not chunks:
            raise UserError(f"{paths[0][1]}: there are no rows")
        return chunks, facts

    def _splitters(self, facts: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """For each table, first values of all ranges but the first: quantiles that `number` can hold in memory."""
        splitters = {}
        for table in facts[0]["tables"]:
            of_table = [fact["tables"][table] for fact in facts]
            cost = sum(stages.ENTRY_BYTES * fact["distinct"] + 4 * fact["bytes"] for fact in of_table)
            samples = sorted(value for fact in of_table for value in fact["samples"])
            ranges = math.ceil(cost / self.plan.bucket_bytes)
            splitters[table] = sorted(
                {samples[len(samples) * i // ranges] for i in range(1, ranges) if samples}
            )
        return splitters

    def count(
        self, chunks: Sequence[Chunk], facts: Sequence[Mapping[str, Any]], assign: Any
    ) -> tuple[list[Path], dict[str, list[str]]]:
        """The counted chunks, and for each table the first values of all ranges but the first."""
        splitters = self._splitters(facts)
        tasks = [
            Task(self.work / "count" / f"{i:06d}", chunk.rows, (chunk, self.spec, assign, splitters))
            for i, chunk in enumerate(chunks)
        ]
        folders = self._run("count", "rows", stages.count, tasks)
        return folders, splitters

    def number(
        self, facts: Sequence[Mapping[str, Any]], counted: tuple[list[Path], dict[str, list[str]]]
    ) -> dict[str, tuple[int, list[Numbered]]]:
        """For each table the number of values kept, and the ranges with their first ids; not of integer groups."""
        folders, splitters = counted
        tasks: dict[str, list[Task]] = {}
        batch = 0
        for table, firsts in splitters.items():
            number = 1 + len(firsts)
            entries = sum(fact["tables"][table]["distinct"] for fact in facts) // number
            min_count = 1 if table == GROUP else self.spec.table_min_count(table)
            if table != GROUP or not all(fact["integer_group"] for fact in facts):
                path = self.spec.pretrained.get(table)
                tasks[table] = [
                    Task(
                        self.work / "number" / f"{i:06d}",
                        entries,
                        (folders, i, min_count, stages.Keys(path, first, last) if path else None),
                    )
                    for i, (first, last) in enumerate(pairwise([None, *firsts, None]), start=batch)
                ]
            batch += number
        self._run(
            "number", "values", stages.number, [task for of_table in tasks.values() for task in of_table]
        )
        numbered = {}
        for table, of_table in tasks.items():
            ends = list(accumulate((stages.facts(task.out)["kept"] for task in of_table), initial=0))
            numbered[table] = (
                ends[-1],
                [Numbered(task.out, base) for task, base in zip(of_table, ends, strict=False)],
            )
        return numbered

    def encode(
        self,
        chunks: Sequence[Chunk],
        facts: Sequence[Mapping[str, Any]],
        counted: tuple[list[Path], dict[str, list[str]]],
        tables: Mapping[str, tuple[int, list[Numbered]]],
        in_time_order: bool,
    ) -> tuple[dict[str, list[Slice]], Schema]:
        """Where the rows of each split lie, in their order, and the schema of the result."""
        counts = [stages.facts(folder) for folder in counted[0]]
        check_split_rows({name: sum(count["splits"][i] for count in counts) for i, name in enumerate(SPLITS)})
        schema = self.spec.prepared(
            {table: 1 + kept for table, (kept, _) in tables.items() if table != GROUP}, self.vector_sizes
        )
        splitters = self._time_splitters(chunks, facts) if in_time_order else None
        encoding = Encoding(
            schema,
            {table: ranges for table, (_, ranges) in tables.items()},
            {f.name: _moments(f, counts) for f in self.spec.features if f.transform == "standardize"},
            _lowest(chunks, facts),
            in_time_order,
            splitters,
        )
        encoded = self._run(
            "encode",
            "rows",
            stages.encode,
            [
                Task(
                    self.work / "encode" / f"{i:06d}",
                    chunk.rows,
                    (chunk, i, counted[0][i], self.spec, encoding),
                )
                for i, chunk in enumerate(chunks)
            ],
        )
        slices: dict[str, list[Slice]] = {split: [] for split in SPLITS}
        if splitters is None:
            for folder, count in zip(encoded, counts, strict=True):
                starts = accumulate(count["splits"], initial=0)
                for split, start, rows in zip(SPLITS, starts, count["splits"], strict=False):
                    slices[split].append(Slice(folder, start, start + rows))
            return slices, schema
        sizes = [sum(column) for column in zip(*(stages.facts(folder) for folder in encoded), strict=True)]
        single = [False, *(b - a == 1 for a, b in pairwise(splitters)), False]
        ordered = self._run(
            "sort",
            "rows",
            stages.sort,
            [
                Task(self.work / "sort" / f"{i:06d}", rows, (encoded, i, schema, single[i]))
                for i, rows in enumerate(sizes)
            ],
        )
        # the rows of a split follow those of the split before
        ends = list(accumulate(sum(count["splits"][i] for count in counts) for i in range(len(SPLITS))))
        row = 0
        for folder, rows in zip(ordered, sizes, strict=True):
            for split, first, last in zip(SPLITS, [0, *ends], ends, strict=False):
                start, stop = max(first - row, 0), min(last - row, rows)
                if start < stop:
                    slices[split].append(Slice(folder, start, stop))
            row += rows
        return slices, schema

    def _time_splitters(
        self, chunks: Sequence[Chunk], facts: Sequence[Mapping[str, Any]]
    ) -> list[int] | None:
        """First times of the ranges that are sorted one by one; None if the rows are in order already.

        A time that alone fills a range and more is a range by itself, which needs no sorting.
        """
        times = [fact["times"] for fact in facts]
        follows = all(a["last"] <= b["first"] for a, b in pairwise(times))
        if follows and all(time["sorted"] for time in times):
            return None
        rows = sum(chunk.rows for chunk in chunks)
        size = sum(fact["bytes"] for fact in facts)
        ranges = math.ceil(stages.SORT_FACTOR * size / self.plan.bucket_bytes)
        samples = sorted((value, time["every"]) for time in times for value in time["samples"])
        ends = list(accumulate(every for _, every in samples))
        quantiles = [
            samples[min(bisect_right(ends, rows * i // ranges), len(samples) - 1)][0]
            for i in range(1, ranges)
            if samples
        ]
        heavy = {a for a, b in pairwise(quantiles) if a == b}
        return sorted({*quantiles, *(time + 1 for time in heavy)})

    def write(self, slices: Mapping[str, Sequence[Slice]], schema: Schema) -> dict[str, SplitStatistics]:
        """The files of the result below `work`/new, and the statistics of each split."""
        tasks = {
            split: [
                Task(
                    self.work / "part" / f"{split}-{number:05d}",
                    sum(piece.stop - piece.start for piece in pieces),
                    (pieces, schema),
                )
                for number, pieces in enumerate(_parts(of_split))
            ]
            for split, of_split in slices.items()
        }
        self._run("write", "rows", stages.part, [task for of_split in tasks.values() for task in of_split])
        statistics = {}
        for split, of_split in tasks.items():
            (self.work / "new" / split).mkdir(parents=True, exist_ok=True)
            statistics[split] = SplitStatistics()
            for number, task in enumerate(of_split):
                statistics[split].merge(SplitStatistics.from_dict(stages.facts(task.out)))
                target = self.work / "new" / split / part_name(number)
                if not target.exists():
                    (task.out / "part.parquet").rename(target)
        return statistics

    def write_vectors(self) -> None:
        """The tables of given vectors below `work`/new/pretrained."""
        tasks = {
            table: Task(self.work / "vectors" / table, path.stat().st_size >> 20, (path,))
            for table, path in self.spec.pretrained.items()
        }
        self._run("vectors", "MB", stages.vectors, list(tasks.values()))
        for table, task in tasks.items():
            target = self.work / "new" / "pretrained" / f"{table}.npy"
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                (task.out / "vectors.npy").rename(target)

    def compare_md5(self, published: Mapping[Path, str]) -> list[str]:
        """Lines of the card: whether raw files are the published ones, byte by byte."""
        tasks = [
            Task(self.work / "md5" / f"{i:06d}", path.stat().st_size >> 20, (path,))
            for i, path in enumerate(published)
        ]
        found = [stages.facts(folder) for folder in self._run("md5", "MB", stages.md5, tasks)]
        return [
            f"md5 of {path.name}: the published one ({md5})."
            if md5 == expected
            else f"md5 of {path.name}: {md5}, not the published {expected}: this is another file."
            for (path, expected), md5 in zip(published.items(), found, strict=True)
        ]


def _parts(slices: Sequence[Slice]) -> Iterator[list[Slice]]:
    """The rows of each file of a split."""
    part: list[Slice] = []
    room = ROWS_PER_FILE
    for path, start, stop in slices:
        while start < stop:
            rows = min(room, stop - start)
            part.append(Slice(path, start, start + rows))
            start, room = start + rows, room - rows
            if not room:
                yield part
                part, room = [], ROWS_PER_FILE
    if part:
        yield part


def _moments(feature: RawFeature, counts: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Mean and standard deviation over train; 0 and 1 where they are not defined or of no use."""
    sums = [count["sums"][feature.name] for count in counts]
    rows = sum(number for number, _, _ in sums)
    if not rows:
        return 0.0, 1.0
    mean = sum((Fraction(*total) for _, total, _ in sums), Fraction(0)) / rows
    square = sum((Fraction(*total) for _, _, total in sums), Fraction(0)) / rows
    return float(mean), math.sqrt(max(0, square - mean**2)) or 1.0


def _lowest(chunks: Sequence[Chunk], facts: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """The lowest value of each file, for the transform log_from_lowest."""
    lowest: dict[int, float] = {}
    for chunk, fact in zip(chunks, facts, strict=True):
        lowest[chunk.file] = min(fact["lowest"], lowest.get(chunk.file, math.inf))
    return lowest


def _vector_notes(schema: Schema, tables: Mapping[str, tuple[int, list[Numbered]]]) -> list[str]:
    """Lines of the card: given vectors, and what has no partner."""
    notes = []
    for table, size in schema.pretrained.items():
        kept, ranges = tables[table]
        of_ranges = [stages.facts(numbered.path) for numbered in ranges]
        without = [sum(fact[key] for fact in of_ranges) for key in ("without_value", "without_key")]
        notes.append(
            f"`{table}`: given vectors of {size} numbers, of {kept:,} values; {without[0]:,} of them are in no row, "
            f"and {without[1]:,} values of rows have no vector (id 0)."
        )
    return notes


def _notes(spec: RawSchema, missing: Mapping[str, int]) -> list[str]:
    """Lines of the card: missing dense values, transforms, min_counts and hashes."""
    notes: dict[str, list[str]] = {}
    for feature in spec.features:
        if count := missing.get(feature.name):
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
