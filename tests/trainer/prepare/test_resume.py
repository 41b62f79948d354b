"""A preparation that is killed, interrupted or spread over a cluster: the same bytes in the end."""

import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import preparation, tasks
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from cetnet.trainer.prepare.engine.tasks import (
    Resources,
    program_files,
)
from tests.trainer.prepare.conftest import SMALL
from tests.trainer.prepare.test_engine import shuffled, tree
from tests.trainer.prepare.test_tabular import read, records, write_csv, write_schema

PREPARE = Path(tasks.__file__).parents[1]
PROGRAM = """
import multiprocessing, os, signal, sys
from pathlib import Path
from cetnet.trainer.prepare.engine import tasks
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
if __name__ == "__main__":
    raw, out, schema, workers, kill_after, chunk_bytes, bucket_bytes = sys.argv[1:]
    tasks.Resources.sizes = lambda _: tasks.TaskSizes(int(chunk_bytes), int(bucket_bytes))
    done, wait = 0, tasks.wait
    def wait_or_die(*args, **kwargs):
        global done
        result = wait(*args, **kwargs)
        done += len(result.done)
        if done >= int(kill_after):
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    tasks.wait = wait_or_die
    prepare_tabular("csv", Path(raw), Path(out), Path(schema), split="time:0.8,0.1,0.1", workers=int(workers),
                    command="c")
"""


def run_until_killed(tmp_path: Path, workers: int, kill_after: int) -> subprocess.CompletedProcess[str]:
    files = [tmp_path / "raw.csv", tmp_path / "out", tmp_path / "raw.yaml"]
    arguments = [*files, workers, kill_after, SMALL.chunk_bytes, SMALL.bucket_bytes]
    script = tmp_path / "prepare.py"
    script.write_text(PROGRAM)
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("small_sizes")
def test_killed_preparation_goes_on(tmp_path: Path) -> None:
    write_csv(tmp_path / "raw.csv", shuffled())
    schema = write_schema(tmp_path / "raw.yaml")
    prepare_tabular(
        "csv",
        tmp_path / "raw.csv",
        tmp_path / "whole",
        schema,
        split="time:0.8,0.1,0.1",
        workers=1,
        command="c",
    )
    killed = run_until_killed(tmp_path, workers=2, kill_after=9)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    # its workers end by themselves
    workers = [int(pid) for pid in killed.stdout.split()]
    assert len(workers) == 2
    psutil.wait_procs([psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)], timeout=60)
    assert not any(psutil.pid_exists(pid) for pid in workers)
    # with one worker, killed again, then to the end
    for kill_after in (30, 10**6):
        run = run_until_killed(tmp_path, workers=1, kill_after=kill_after)
        assert "going on from" in run.stderr
    assert run.returncode == 0, run.stderr
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole", "raw.csv", "raw.yaml", "prepare.py"}


def test_dask_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    write_csv(tmp_path / "raw.csv", shuffled())
    schema = write_schema(tmp_path / "raw.yaml")

    def prepare(name: str, **options: Any) -> dict[str, bytes]:
        monkeypatch.setattr(Resources, "sizes", lambda _: SMALL)
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / name, schema, command="c", **options)
        return tree(tmp_path / name)

    local = prepare("local", workers=1)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="1GB", dashboard_address=None
    ) as cluster:
        assert prepare("dask", scheduler=cluster.scheduler_address) == local
        rows = records(300)
        rows[200]["price"] = "cheap"
        write_csv(tmp_path / "raw.csv", rows)
        with pytest.raises(UserError, match="column 'price', row 201"):
            prepare("bad", scheduler=cluster.scheduler_address)
    assert not (tmp_path / ".bad.work").exists()


def test_dask_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "raw.csv", records(50))
    schema = write_schema(tmp_path / "raw.yaml")
    with pytest.raises(UserError, match="no Dask scheduler answers") as caught:
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, scheduler="tcp://127.0.0.1:9")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"cetnet\[distributed\]"):
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, scheduler="tcp://127.0.0.1:9")
    assert {path.name for path in tmp_path.iterdir()} == {"raw.csv", "raw.yaml"}


@pytest.mark.usefixtures("small_sizes")
def test_unfinished_work_of_another_job(tmp_path: Path) -> None:
    write_csv(tmp_path / "raw.csv", records())
    schema = write_schema(tmp_path / "raw.yaml")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, schema)
    assert (tmp_path / ".out.work").is_dir()
    write_csv(tmp_path / "raw.csv", records(200))
    with pytest.raises(UserError, match="another preparation"):
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1)
    prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1, overwrite=True)
    assert sum(len(rows) for rows in read(tmp_path / "out").values()) == 200
    assert not (tmp_path / ".out.work").exists()


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize("library", ["numpy", "polars", "torch"])
def test_unfinished_work_of_another_version(tmp_path: Path, library: str) -> None:
    write_csv(tmp_path / "raw.csv", records())
    schema = write_schema(tmp_path / "raw.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "version", lambda name: "0.1" if name == library else metadata.version(name))
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path, schema)
    with pytest.raises(UserError, match="another version of the program") as error:
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1)
    assert "\n" not in str(error.value)


def interrupted(tmp_path: Path, schema: Path) -> None:
    """A preparation that gets Ctrl-C while it encodes."""
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt  # not by a signal: TorchX, in other tests, takes over SIGINT

        patch.setattr(preparation, "encode_rows", interrupt)
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1)


def test_program_is_known_by_all_files_that_decide_the_bytes() -> None:
    names = {path.relative_to(PREPARE.parent).as_posix() for path in program_files()}
    assert {"prepare/engine/encoded.py", "prepare/sources/criteo.py", "encoder/hashing.py"} <= names
    of_engine_and_sources = {
        path.relative_to(PREPARE.parent).as_posix()
        for path in PREPARE.rglob("*.py")
        if path.parent.name != "generate"
    }
    assert names == of_engine_and_sources | {
        "data/arrow_types.py",
        "encoder/arrow_values.py",
        "encoder/hashing.py",
        "encoder/patterns.py",
        "encoder/vocabulary.py",
    }
