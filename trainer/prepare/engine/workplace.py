"""Where a preparation works: a folder beside its result, on a disk with room for it, and workers with memory."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.tasks import (
    Resources,
    Task,
    TaskSizes,
    executor,
    find_resources,
    run_tasks,
    work_folder,
)
from cetnet.trainer.prepare.engine.text_streams import compression


@dataclass(frozen=True)
class Workplace:
    """The work folder, the sizes that tasks in it keep to, and where they run."""

    folder: Path
    sizes: TaskSizes
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
            Task(self.folder / stage / name, weight, arguments) for name, (weight, arguments) in tasks.items()
        ]
        with executor(self.resources) as pool:
            run_tasks(pool, self.resources.workers, f"{stage} ({unit})", function, todo)
        return [task.out for task in todo]


@contextmanager
def workplace(
    out: Path,
    files: Sequence[Path],
    job: Mapping[str, Any],
    *,
    packed: bool,
    memory: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
) -> Iterator[Workplace]:
    """The `work_folder` of a job that reads `files`, and as many workers as it needs; see `prepare_table`.

    `packed`: the files are not text, so that the result takes more of the disk than they. Raises UserError for too
    little memory or disk, too.
    """
    resources = find_resources(memory, workers, scheduler)
    _check_disk(out, files, packed)
    with work_folder(out, job, resources.sizes(), overwrite) as (folder, sizes):
        resources = resources.fit(sizes)
        if not resources.scheduler and sum(path.stat().st_size for path in files) <= sizes.chunk_bytes:
            resources = Resources(1, resources.share)
        yield Workplace(folder, sizes, resources)


def _check_disk(out: Path, files: Iterable[Path], packed: bool) -> None:
    """UserError if the disk has no room for 1.5 times the text in `files`, 6 times what is compressed or `packed`.

    So much do a work folder and the result take up. Nothing is checked where a work folder is already.
    """
    need = sum(
        int(path.stat().st_size * (6 if packed or compression(path) else 1.5))
        for path in files
        if path.is_file()
    )
    parent = next(path for path in out.absolute().parents if path.exists())
    work = out.with_name(f".{out.name}.work")
    if not work.exists() and (free := shutil.disk_usage(parent).free) < need:
        raise UserError(
            f"{parent} has {free / 1e6:,.1f} MB free, and the preparation may need {need / 1e6:,.1f} MB: "
            "give a directory on another disk"
        )
