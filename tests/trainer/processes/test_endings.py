"""How commands end: at any signal at once and without a word, whatever becomes of their output."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from cetnet.trainer.processes.launcher import CETNET
from tests.data import write_dataset
from tests.paths import ROOT
from tests.processes import run_settings

SECONDS = 300  # for what takes no more than some ten, so that it is a hang
STOPPER = Path(__file__).parent / "stopper"
SCHEMA = {
    "label": "click",
    "min_count": 1,
    "features": [{"name": "user", "kind": "categorical"}, {"name": "price", "kind": "dense"}],
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*command: str, expected: int, **environment: str) -> subprocess.CompletedProcess[str]:
        """`cetnet COMMAND`, or a shell's line with $CETNET; no traceback, and none of its processes is left."""
        paths = {"PYTHONPATH": f"{STOPPER}:{ROOT}", "OMP_NUM_THREADS": "1", "MARK": str(tmp_path)}
        shell = len(command) == 1
        done = subprocess.run(
            ["bash", "-c", *command] if shell else [*CETNET, *command],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            cwd=tmp_path,
            env=os.environ | paths | {"CETNET": " ".join(CETNET)} | environment,
            start_new_session=True,
        )
        assert done.returncode == expected, done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert [process for process in psutil.process_iter() if is_left(process, str(tmp_path))] == []
        return done

    return run


def is_left(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def write_experiment(folder: Path) -> None:
    write_dataset(folder / "data", {"train": 640, "test": 64})
    model = {"components": {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [16]}}}
    settings = run_settings(Path("data"), Path("run"), model=model)
    (folder / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


@pytest.mark.parametrize(
    ("module", "number"), [("typer", signal.SIGINT), ("torch", signal.SIGTERM), ("torchrec", signal.SIGINT)]
)
def test_a_signal_while_it_loads(run: Run, tmp_path: Path, module: str, number: signal.Signals) -> None:
    write_experiment(tmp_path)
    done = run("train", "train.yaml", expected=-number, STOP_AT=module, SIGNAL=str(int(number)))
    assert not done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_an_interrupt_after_polars_has_loaded_which_handles_it_itself(run: Run, tmp_path: Path) -> None:
    prepare = ("prepare", "csv", "--raw", "raw.csv", "--schema", "schema.yaml", "--out", "out")
    at = {"STOP_AT": "cetnet.trainer.prepare.engine.vocabulary", "SIGNAL": str(int(signal.SIGINT))}
    assert not run(*prepare, expected=128 + signal.SIGINT, **at).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_group_is_interrupted_while_the_workers_of_a_preparation_load(run: Run, tmp_path: Path) -> None:
    more_than_a_chunk = "click,user,price\n" + "0,a,17.5\n1,b,0.25\n" * 80_000
    (tmp_path / "raw.csv").write_text(more_than_a_chunk, encoding="utf-8")
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
    places = ("--raw", "raw.csv", "--schema", "schema.yaml", "--out", "out")
    prepare = ("prepare", "csv", *places, "--workers", "2", "--memory", "820MB")
    at = {"STOP_AT": "multiprocessing.spawn", "SIGNAL": str(int(signal.SIGINT)), "GROUP": "1"}
    done = run(*prepare, expected=128 + signal.SIGINT, **at)
    assert done.stderr.startswith("interrupted: the same command goes on from ")
    assert not (tmp_path / "out").exists()
    run(*prepare, expected=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw.csv", "schema.yaml"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_file_that_is_being_written_is_gone_with_its_writer(tmp_path: Path, number: signal.Signals) -> None:
    program = f"""
import os, signal, time
from pathlib import Path
from cetnet.trainer.files import written_aside

for number in (signal.SIGINT, signal.SIGHUP):  # which a shell in the background, or nohup, has ignored
    signal.signal(number, signal.SIG_DFL)
with written_aside(Path("scores")) as aside:
    aside.touch()
    os.kill(os.getpid(), {int(number)})
    time.sleep({SECONDS})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        check=False,
        timeout=SECONDS,
        stderr=subprocess.DEVNULL,
    )
    # A KeyboardInterrupt that nobody catches ends Python by the signal.
    assert done.returncode == (-number if number == signal.SIGINT else 128 + number)
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    assert run("$CETNET config >/dev/full", expected=2).stderr.startswith(
        "cetnet: standard output: No space left on device; make room"
    )
    assert not run("$CETNET config | true; exit ${PIPESTATUS[0]}", expected=1).stderr
    for closed in ("<&- >&-", "2>&-"):
        assert not run(f"$CETNET config dcnv9 {closed} || exit 3", expected=3).stdout
    assert list(tmp_path.iterdir()) == []


def test_in_a_locale_without_utf_8(run: Run, tmp_path: Path) -> None:
    (tmp_path / "é.yaml").write_text("run_dir: [", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert "cetnet: é.yaml: " in run("train", "é.yaml", expected=2, **ascii_only).stderr


def test_a_working_directory_that_is_gone(run: Run) -> None:
    line = "cetnet: the working directory is gone; change to one that exists\n"
    assert run("mkdir gone; cd gone; rmdir ../gone; $CETNET config dcnv2", expected=2).stderr == line


def test_processes_read_an_experiment_from_a_pipe(run: Run, tmp_path: Path) -> None:
    write_experiment(tmp_path)
    run("$CETNET train <(cat train.yaml) training.max_steps=1 --nproc 2", expected=0)
    assert (tmp_path / "run/result.json").exists()
