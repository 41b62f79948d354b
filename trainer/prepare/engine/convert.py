"""Publishers' files that are no table yet: tasks make rows of them, before `prepare_table` takes these."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from cetnet.trainer.prepare.engine.layout import check_out
from cetnet.trainer.prepare.engine.tabular import check_disk
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


@dataclass(frozen=True)
class Conversion:
    """The folder of a conversion, sizes that its tasks keep to, and where they run.

    All that is left of it in the end is what `prepare_table` makes of its files; killed, the same command goes on.
    """

    work: Path
    plan: Plan
    resources: Resources

    def run(
        self,
        stage: str,
        unit: str,
        function: Callable[..., None],
        tasks: Mapping[str, tuple[int, tuple[Any, ...]]],
    ) -> list[Path]:
        """`tasks`: weight and arguments by name; the folders that `function(folder, *arguments)` filled."""
        todo = [
            Task(self.work / stage / name, weight, arguments) for name, (weight, arguments) in tasks.items()
        ]
        with executor(self.resources) as pool:
            run_tasks(pool, self.resources.workers, f"{stage} ({unit})", function, todo)
        return [task.out for task in todo]


@contextmanager
def conversion(
    out: Path,
    raw: Sequence[Path],
    settings: Mapping[str, Any],
    engine: Mapping[str, Any],
    packed: bool = False,
) -> Iterator[Conversion]:
    """What makes rows of `raw` in `.NAME.rows.work` beside `out`, which is removed at the end: see `work_folder`.

    `settings` say what the rows depend on beside the files; `engine` are arguments of `prepare_table`; `packed`: the
    files are not text, so rows take more of the disk than they (`check_disk`).
    """
    overwrite = engine.get("overwrite", False)
    check_out(out, overwrite)
    resources = find_resources(engine.get("memory"), engine.get("workers"), engine.get("scheduler"))
    rows = out.with_name(f"{out.name}.rows")
    check_disk(rows, raw, packed)
    job = {"files": [identity(path) for path in raw], **settings}
    with work_folder(rows, job, resources.plan(), overwrite) as (work, plan):
        resources = resources.fit(plan)
        if not resources.scheduler and sum(path.stat().st_size for path in raw) <= plan.chunk_bytes:
            resources = Resources(1, resources.share)
        yield Conversion(work, plan, resources)


def write_splits(folder: Path, frames: Iterable[tuple[str, pl.DataFrame]]) -> None:
    """Write (split, frame) pairs as `<split>.parquet` in the folder, a row group a frame."""
    writers: dict[str, pq.ParquetWriter] = {}
    try:
        for split, frame in frames:
            table = frame.to_arrow()
            if split not in writers:
                path = folder / f"{split}.parquet"
                writers[split] = pq.ParquetWriter(path, table.schema, compression="zstd")
            writers[split].write_table(table)
    finally:
        for writer in writers.values():
            writer.close()
