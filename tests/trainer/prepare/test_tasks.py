"""Work folders: what stays after each kind of failure, and what goes on from it."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import tasks
from cetnet.trainer.prepare.engine.tasks import (
    Resources,
    Task,
    TaskSizes,
    Unfinished,
    executor,
    run_tasks,
    work_folder,
)

SIZES = TaskSizes(1_000, 1_000)


def work(tmp_path: Path, function: Callable[..., None], job: str = "job", workers: int = 1) -> None:
    """Three tasks, each of which leaves a line in `log` when it is begun."""
    with work_folder(tmp_path / "out", {"job": job}, SIZES, overwrite=False) as (folder, _):
        todo = [Task(folder / "stage" / str(i), 1, (i, tmp_path)) for i in range(3)]
        with executor(Resources(workers, 10**9)) as pool:
            run_tasks(pool, workers, "stage", function, todo)
        (tmp_path / "out").mkdir()


def note(folder: Path, number: int, tmp_path: Path) -> None:
    (folder / "done").touch()
    with (tmp_path / "log").open("a") as log:
        log.write(f"{number}\n")


def fill_the_disk(folder: Path, number: int, tmp_path: Path) -> None:
    if number == 1:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "done"))
    note(folder, number, tmp_path)


def die(folder: Path, number: int, tmp_path: Path) -> None:
    if number == 1 and not (tmp_path / "dead").exists():
        (tmp_path / "dead").touch()
        os._exit(1)
    note(folder, number, tmp_path)


def find_a_mistake(folder: Path, number: int, tmp_path: Path) -> None:
    note(folder, number, tmp_path)
    raise UserError("row 1: a mistake")


def log(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().split()


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_full_disk_can_be_fixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        Unfinished, match=r"done: No space left on device; make room .*, and the same command goes on"
    ) as error:
        work(tmp_path, fill_the_disk)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == [".out.work", "log"]
    work(tmp_path, note)
    assert "going on from 1 finished tasks" in capsys.readouterr().err
    assert log(tmp_path) == ["0", "1", "2"]  # none was done twice
    assert names(tmp_path) == ["log", "out"]


def test_a_worker_that_dies(tmp_path: Path) -> None:
    with pytest.raises(Unfinished, match="a worker died in the stage stage") as error:
        work(tmp_path, die, workers=2)
    assert "\n" not in str(error.value)
    assert names(tmp_path)[0] == ".out.work"
    work(tmp_path, die)
    assert sorted(set(log(tmp_path))) == ["0", "1", "2"]
    assert names(tmp_path) == ["dead", "log", "out"]


def test_nothing_stays_of_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1: a mistake"):
        work(tmp_path, find_a_mistake)
    assert names(tmp_path) == ["log"]


def test_a_folder_that_is_half_removed_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed while the folder is removed: some of its tasks are missing, so no job may go on from the others."""
    with monkeypatch.context() as patch:
        patch.setattr(tasks.shutil, "rmtree", interrupted_removal)
        with pytest.raises(KeyboardInterrupt):
            work(tmp_path, note)
    left = sorted(path.name for path in (tmp_path / ".out.work/stage").iterdir())
    assert left == ["1", "2"]
    shutil.rmtree(tmp_path / "out")
    work(tmp_path, note, job="another")
    assert "going on" not in capsys.readouterr().err
    assert log(tmp_path) == ["0", "1", "2"] * 2


def interrupted_removal(path: Path, ignore_errors: bool = False) -> None:
    if not ignore_errors:  # not the remains of a task
        (path / "stage/0/done").unlink()
        (path / "stage/0").rmdir()
        raise KeyboardInterrupt
