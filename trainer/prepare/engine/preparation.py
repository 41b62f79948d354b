"""The stages of a preparation: maps over chunks that tasks do, each in a folder of its own, and small reduces.

stage    task           what it does within its share of the memory
cut      find_cuts      where the lines of a CSV file may be cut
read     type_rows      a unit of raw rows -> chunks of typed rows, and their distinct values
count    count_values   a chunk -> its rows' splits, and how often each of its distinct values occurs in train
number   number_values  a range of the values of one table, over all chunks -> the values kept, numbered in their
                        order, and for each chunk the numbers of its distinct values
encode   encode_rows    a chunk -> its rows as they will be written, in the order of their splits (or of time)
sort     sort_rows      a range of time, over all chunks -> its rows in order; only if the raw rows are not
write    write_part     the rows of one file of the result -> that file
vocabularies  write_vocabulary  the values kept of a table, range by range -> its file in the result
vectors  write_vectors  a file of given vectors -> the rows of their table
md5      hash_file      a raw file -> its md5
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from hashlib import file_digest
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from cetnet.models.schema import Schema
from cetnet.trainer.data.data_files import Format, KeyValues
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.agreement import check_labels
from cetnet.trainer.prepare.engine.chunks import units
from cetnet.trainer.prepare.engine.encoded import (
    Encoding,
    Numbered,
    Slice,
    encode_rows,
    parts,
    sort_rows,
    write_part,
)
from cetnet.trainer.prepare.engine.known import Known, grow_vocabulary, pieces, sort_values
from cetnet.trainer.prepare.engine.layout import SPLITS, check_split_rows
from cetnet.trainer.prepare.engine.like import Like, vectors_of
from cetnet.trainer.prepare.engine.part_files import part_name
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.splits import Assign
from cetnet.trainer.prepare.engine.statistics import Measure, SplitStatistics
from cetnet.trainer.prepare.engine.tasks import Task, read_facts, run_tasks, write_facts
from cetnet.trainer.prepare.engine.text_streams import is_stream
from cetnet.trainer.prepare.engine.transforms import Facts
from cetnet.trainer.prepare.engine.typed import (
    ENTRY_BYTES,
    GROUP,
    SORT_FACTOR,
    Chunk,
    Transform,
    find_cuts,
    type_rows,
)
from cetnet.trainer.prepare.engine.units import BadValue, Unit
from cetnet.trainer.prepare.engine.vectors import write_vectors
from cetnet.trainer.prepare.engine.vocabulary import Keys, count_values, number_values, write_vocabulary
from cetnet.trainer.prepare.engine.vocabulary_files import file_of
from cetnet.trainer.prepare.engine.workplace import Workplace


class Vocabulary(NamedTuple):
    """The values of a table that have ids: how many, and the ranges that they are in."""

    kept: int
    ranges: Sequence[Numbered]


def hash_file(folder: Path, path: Path) -> None:
    """facts.json: the md5 of a file, hexadecimal."""
    with path.open("rb") as file:
        write_facts(folder, file_digest(file, "md5").hexdigest())


@dataclass(frozen=True)
class Preparation:
    """The stages of one preparation, which share these."""

    place: Workplace
    pool: Executor
    spec: RawSchema
    format: Format
    vector_sizes: Mapping[str, int]
    keys: Mapping[Path, KeyValues]
    splits: Sequence[str] = SPLITS  # that rows are to be in
    labelled: bool = True
    like: Like | None = None

    @property
    def _taken(self) -> Path:
        """Where the vocabularies and vectors of `like` are."""
        return self.place.folder / "like"

    def _task(self, folder: str, name: int | str, weight: int, *arguments: Any) -> Task:
        name = f"{name:06d}" if isinstance(name, int) else name
        return Task(self.place.folder / folder / name, weight, arguments)

    def _run(self, stage: str, unit: str, function: Callable[..., None], tasks: Sequence[Task]) -> list[Path]:
        run_tasks(self.pool, self.place.resources.workers, f"{stage} ({unit})", function, tasks)
        return [task.out for task in tasks]

    def read(
        self, files: Mapping[str, Sequence[Path]], transform: Transform | None
    ) -> tuple[list[Chunk], list[Facts]]:
        """Typed chunks in the order of the raw rows, and the facts of each."""
        spec, sizes, trained = self.spec, self.place.sizes, self.like is not None
        paths = [
            (None if name == "all" else SPLITS.index(name), path) for name in files for path in files[name]
        ]

        def units_of(number: int, cuts: Sequence[int]) -> list[Unit]:
            split, path = paths[number]
            keys, named = self.keys.get(path, {}), transform is None
            return units(path, number, split, self.format, spec, cuts, sizes.chunk_bytes, keys, named=named)

        to_cut = [
            self._task("cut", number, path.stat().st_size >> 20, path, spec, sizes)
            for number, (_, path) in enumerate(paths)
            if self.format == "csv"
            and not is_stream(path, spec.encoding)
            and path.stat().st_size > sizes.chunk_bytes
        ]
        if to_cut:
            for number in range(len(paths)):  # a mistake in any is found before the hours that cutting takes
                units_of(number, [])
        cuts = {int(folder.name): read_facts(folder) for folder in self._run("cut", "MB", find_cuts, to_cut)}
        todo = [unit for number in range(len(paths)) for unit in units_of(number, cuts.get(number, []))]
        tasks = [
            self._task(
                "typed", i, max(1, unit.size >> 20), unit, self.format, spec, transform, sizes, trained
            )
            for i, unit in enumerate(todo)
        ]
        try:
            folders = self._run("read", "MB", type_rows, tasks)
        except BadValue as error:
            unit, column, row, expected = error.args
            # all units before it are whole
            before = sum(
                fact["rows"]
                for task in tasks[: todo.index(unit)]
                if task.arguments[0].file == unit.file
                for fact in read_facts(task.out)
            )
            raise type(error)(unit, column, row + before, expected) from error
        chunks: list[Chunk] = []
        facts: list[Facts] = []
        row = 0
        for unit, folder in zip(todo, folders, strict=True):
            for number, fact in enumerate(read_facts(folder)):
                chunks.append(Chunk(folder / f"{number:06d}", unit.file, unit.split, row, fact["rows"]))
                facts.append(fact)
                row += fact["rows"]
        if not chunks:
            raise UserError(f"{paths[0][1]}: there are no rows")
        check_labels(spec, chunks, facts, [path for _, path in paths])
        return chunks, facts

    def known(self) -> dict[str, list[Path]]:
        """For each table of `like` with a vocabulary, its values in pieces that a task can hold in memory, sorted."""
        if self.like is None:
            return {}
        self.like.take(self._taken)
        tasks: dict[str, list[Task]] = {}
        for table in self.like.tables:
            path = file_of(self._taken, table)
            tasks[table] = [
                self._task("known", f"{table}-{i:06d}", stop - start, path, start, stop, self.place.sizes)
                for i, (start, stop) in enumerate(pieces(path, self.place.sizes))
            ]
        self._run("known", "row groups", sort_values, list(chain.from_iterable(tasks.values())))
        known = {table: [task.out for task in of_table] for table, of_table in tasks.items()}
        self.like.check_digests(known)
        return known

    def splitters(self, facts: Sequence[Facts], known: Mapping[str, Sequence[Path]]) -> dict[str, list[str]]:
        """For each table, first values of all ranges but the first: quantiles that a task can hold in memory."""
        splitters = {}
        for table in facts[0]["tables"]:
            of_table = [fact["tables"][table] for fact in facts]
            of_table += [read_facts(piece) for piece in known.get(table, ())]
            cost = sum(ENTRY_BYTES * fact["distinct"] + 4 * fact["bytes"] for fact in of_table)
            samples = sorted(value for fact in of_table for value in fact["samples"])
            ranges = math.ceil(cost / self.place.sizes.bucket_bytes)
            splitters[table] = sorted(
                {samples[len(samples) * i // ranges] for i in range(1, ranges) if samples}
            )
        return splitters

    def count(
        self, chunks: Sequence[Chunk], splitters: Mapping[str, Sequence[str]], assign: Assign | None
    ) -> list[Path]:
        """The counted chunks; `splitters` divide the values of each table, `assign` gives rows their split."""
        counting = self.like is None or self.like.grow
        tasks = [
            self._task("count", i, chunk.rows, chunk, self.spec, assign, splitters, counting)
            for i, chunk in enumerate(chunks)
        ]
        return self._run("count", "rows", count_values, tasks)

    def number(
        self,
        facts: Sequence[Facts],
        splitters: Mapping[str, Sequence[str]],
        counted: Sequence[Path],
        known: Mapping[str, Sequence[Path]],
    ) -> dict[str, Vocabulary]:
        """The values of each table that have ids, known ones first; not of integer groups."""
        tasks: dict[str, list[Task]] = {}
        batch = 0
        for table, firsts in splitters.items():
            number = 1 + len(firsts)
            entries = sum(fact["tables"][table]["distinct"] for fact in facts) // number
            min_count = 1 if table == GROUP else self.spec.table_min_count(table)
            if table != GROUP or not all(fact["integer_group"] for fact in facts):
                given = [self._given(table, ends, known) for ends in pairwise([None, *firsts, None])]
                tasks[table] = [
                    self._task("number", i, entries, counted, i, min_count, of_range)
                    for i, of_range in enumerate(given, start=batch)
                ]
            batch += number
        self._run("number", "values", number_values, list(chain.from_iterable(tasks.values())))
        vocabularies = {}
        for table, of_table in tasks.items():
            numbered = [read_facts(task.out) for task in of_table]
            before = self.like.schema.tables[table] - 1 if self.like and table in known else 0
            ends = list(accumulate((of_range["kept"] for of_range in numbered), initial=before))
            ranges = [Numbered(task.out, base) for task, base in zip(of_table, ends, strict=False)]
            vocabularies[table] = Vocabulary(ends[-1], ranges)
        return vocabularies

    def _given(
        self, table: str, ends: tuple[str | None, str | None], known: Mapping[str, Sequence[Path]]
    ) -> Keys | Known | None:
        """The values of a range that have ids whatever the rows say."""
        if self.like is not None and table in known:
            return Known(known[table], *ends, table in self.like.growing)
        path = self.spec.pretrained.get(table)
        return Keys(path, *ends) if path else None

    def write_vocabularies(self, vocabularies: Mapping[str, Vocabulary]) -> dict[str, str]:
        """The files of the tables' vocabularies in the folder `new`/vocabularies, and their digests."""
        new = self.place.folder / "new"
        as_before: dict[str, str] = {}  # with their digests
        if self.like is not None:
            as_before = {t: self.like.digests[t] for t in self.like.tables if t not in self.like.growing}
        tasks = {}
        for table, of_table in vocabularies.items():
            if table != GROUP and table not in as_before:
                ranges = [each.path for each in of_table.ranges]
                old = [file_of(self._taken, table)] if self.like else []
                tasks[table] = self._task("vocabularies", table, of_table.kept, *old, ranges)
        function = grow_vocabulary if self.like else write_vocabulary
        self._run("vocabularies", "values", function, list(tasks.values()))
        for table, task in tasks.items():
            target = file_of(new, table)
            target.parent.mkdir(parents=True, exist_ok=True)
            _move(task.out / "vocabulary.parquet", target)
        digests = {table: read_facts(task.out) for table, task in tasks.items()}
        for table in as_before:
            target = file_of(new, table)
            target.parent.mkdir(parents=True, exist_ok=True)
            _move(file_of(self._taken, table), target)
        return dict(sorted((digests | as_before).items()))

    def encode(
        self,
        chunks: Sequence[Chunk],
        facts: Sequence[Facts],
        counted: Sequence[Path],
        vocabularies: Mapping[str, Vocabulary],
        moments: Mapping[str, tuple[float, float]],
        lowest: Mapping[int, float],
        in_time_order: bool,
    ) -> tuple[dict[str, list[Slice]], Schema]:
        """Where the rows of each split lie, in their order, and the schema of the result."""
        counts = [read_facts(folder) for folder in counted]
        rows_of = [sum(count["splits"][i] for count in counts) for i in range(len(SPLITS))]
        check_split_rows({split: rows_of[SPLITS.index(split)] for split in self.splits})
        rows_of_tables = {table: 1 + each.kept for table, each in vocabularies.items() if table != GROUP}
        schema = self.spec.prepared(rows_of_tables, self.vector_sizes)
        splitters = self._time_splitters(chunks, facts) if in_time_order else None
        encoding = Encoding(
            schema,
            {table: vocabulary.ranges for table, vocabulary in vocabularies.items()},
            moments,
            lowest,
            in_time_order,
            splitters,
        )
        tasks = [
            self._task("encode", i, chunk.rows, chunk, i, counted[i], self.spec, encoding)
            for i, chunk in enumerate(chunks)
        ]
        encoded = self._run("encode", "rows", encode_rows, tasks)
        if splitters is not None:
            return self._sort(encoded, splitters, rows_of, schema), schema
        slices: dict[str, list[Slice]] = {split: [] for split in self.splits}
        for folder, count in zip(encoded, counts, strict=True):
            starts = accumulate(count["splits"], initial=0)
            for split, start, rows in zip(SPLITS, starts, count["splits"], strict=False):
                if split in slices:
                    slices[split].append(Slice(folder, start, start + rows))
        return slices, schema

    def _sort(
        self, encoded: Sequence[Path], splitters: Sequence[int], rows_of: Sequence[int], schema: Schema
    ) -> dict[str, list[Slice]]:
        """The rows of each split in the order of time; those of a split follow those of the split before."""
        sizes = [sum(column) for column in zip(*(read_facts(folder) for folder in encoded), strict=True)]
        single = [False, *(b - a == 1 for a, b in pairwise(splitters)), False]
        tasks = [self._task("sort", i, rows, encoded, i, schema, single[i]) for i, rows in enumerate(sizes)]
        ordered = self._run("sort", "rows", sort_rows, tasks)
        slices: dict[str, list[Slice]] = {split: [] for split in SPLITS}
        ends = list(accumulate(rows_of))
        row = 0
        for folder, rows in zip(ordered, sizes, strict=True):
            for split, first, last in zip(SPLITS, [0, *ends], ends, strict=False):
                start, stop = max(first - row, 0), min(last - row, rows)
                if start < stop:
                    slices[split].append(Slice(folder, start, stop))
            row += rows
        return slices

    def _time_splitters(self, chunks: Sequence[Chunk], facts: Sequence[Facts]) -> list[int] | None:
        """First times of the ranges that are sorted one by one; None if the rows are in order already.

        A time that alone fills a range and more is a range by itself, which needs no sorting.
        """
        times = [fact["times"] for fact in facts]
        follows = all(a["last"] <= b["first"] for a, b in pairwise(times))
        if follows and all(time["sorted"] for time in times):
            return None
        rows = sum(chunk.rows for chunk in chunks)
        size = sum(fact["bytes"] for fact in facts)
        ranges = math.ceil(SORT_FACTOR * size / self.place.sizes.bucket_bytes)
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
        """The files of the result in the folder `new`, and the statistics of each split."""
        new = self.place.folder / "new"
        known = {table: self.like.schema.tables[table] for table in self.like.growing} if self.like else {}
        measure = Measure(schema, self.labelled, known)
        tasks = {
            split: [
                self._task("part", f"{split}-{i:05d}", sum(p.stop - p.start for p in part), part, measure)
                for i, part in enumerate(parts(of_split))
            ]
            for split, of_split in slices.items()
        }
        self._run("write", "rows", write_part, list(chain.from_iterable(tasks.values())))
        statistics = {}
        for split, of_split in tasks.items():
            (new / split).mkdir(parents=True, exist_ok=True)
            statistics[split] = SplitStatistics()
            for number, task in enumerate(of_split):
                statistics[split].merge(SplitStatistics.from_dict(read_facts(task.out)))
                _move(task.out / "part.parquet", new / split / part_name(number))
        return statistics

    def count_missing(self, counted: Sequence[Path], statistics: Mapping[str, SplitStatistics]) -> None:
        """Add the missing dense values, which are 0 where the others are measured, to the statistics."""
        counts = [read_facts(folder)["missing"] for folder in counted]
        for split, of_split in statistics.items():
            for name, dense in of_split.dense.items():
                dense.missing = sum(count[name][SPLITS.index(split)] for count in counts)

    def write_vectors(self) -> None:
        """The tables of given vectors in the folder `new`/pretrained."""
        tasks = {
            table: self._task("vectors", table, path.stat().st_size >> 20, path)
            for table, path in self.spec.pretrained.items()
        }
        self._run("vectors", "MB", write_vectors, list(tasks.values()))
        written = {table: task.out / "vectors.npy" for table, task in tasks.items()}
        if self.like is not None:
            taken = {table: vectors_of(self._taken, table) for table in self.like.schema.pretrained}
            written |= {table: path for table, path in taken.items() if path.exists()}
        for table, path in written.items():
            target = vectors_of(self.place.folder / "new", table)
            target.parent.mkdir(exist_ok=True)
            _move(path, target)

    def compare_md5(self, published: Mapping[Path, str]) -> list[str]:
        """Lines of the card: whether raw files are the published ones, byte by byte."""
        tasks = [self._task("md5", i, path.stat().st_size >> 20, path) for i, path in enumerate(published)]
        found = [read_facts(folder) for folder in self._run("md5", "MB", hash_file, tasks)]
        return [
            f"md5 of {path.name}: the published one ({md5})."
            if md5 == expected
            else f"md5 of {path.name}: {md5}, not the published {expected}: this is another file."
            for (path, expected), md5 in zip(published.items(), found, strict=True)
        ]


def _move(file: Path, target: Path) -> None:
    """Move a task's file into the result, unless it was moved before an interruption."""
    if not target.exists():
        file.rename(target)
