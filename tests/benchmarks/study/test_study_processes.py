"""A study's real runs: forks of one process that has the libraries loaded, else as `cetnet train` alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import yaml

from cetnet.benchmarks.study.run import run_study
from cetnet.trainer.cli import run_in_fork
from cetnet.trainer.processes.launcher import CETNET
from tests.data import write_dataset
from tests.paths import ROOT

SECONDS = 400
COMPONENT = {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [16]}
VARIANTS = {
    "single": {},
    "pair": {"model.components": {"left": COMPONENT, "right": COMPONENT}},
}


@pytest.fixture(autouse=True, scope="module")
def no_server() -> None:
    """There is one fork server a process, and another test's may have loaded something else."""
    forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_dataset(path)
    return path


@pytest.fixture
def write(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a study of real runs into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(nproc: int = 1, variants: dict[str, Any] = VARIANTS, **training: Any) -> Path:
        base = {
            "data": {"path": str(data), "batch_size": 64},
            "model": {"components": {"single": COMPONENT}},
            "training": {"log_every": 1, "device": "cpu", **training},
            "evaluation": {"splits": ["test"]},
        }
        study = {"name": "real", "base": "base.yaml", "nproc": nproc, "seeds": [1], "baseline": "single"}
        Path("base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
        Path("study.yaml").write_text(
            yaml.safe_dump(study | {"variants": variants}, sort_keys=False), encoding="utf-8"
        )
        return Path("study.yaml")

    return write


def read(run: Path, file: str = "result.json") -> dict[str, Any]:
    return json.loads((run / file).read_text())


def train_and_tell(arguments: list[str]) -> None:
    """As a study trains; tells its process, its parent, and what was loaded before it began."""
    told = {"process": os.getpid(), "parent": os.getppid(), "loaded": sorted(sys.modules), "path": sys.path}
    with Path("told.txt").open("a", encoding="utf-8") as file:
        file.write(json.dumps(told) + "\n")
    run_in_fork(arguments)


def test_runs_are_forks_of_one_process_that_has_the_libraries(write: Callable[..., Path]) -> None:
    run_study(write(max_steps=3), train=train_and_tell)
    first, second = map(json.loads, Path("told.txt").read_text(encoding="utf-8").splitlines())
    assert first["process"] != second["process"]
    assert first["parent"] == second["parent"]
    assert first["parent"] not in (os.getpid(), first["process"])
    for run in (first, second):
        assert {"torchrec", "cetnet.trainer.train"} <= set(run["loaded"])
        assert str(Path.cwd()) not in run["path"]
        assert "" not in run["path"]


@pytest.mark.parametrize("nproc", [1, 2])
def test_results_are_those_of_the_command_to_the_last_digit(
    write: Callable[..., Path], nproc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Modules of the folder one stands in, which nothing may import.
    for name in ("torch", "cetnet", "multiprocessing"):
        Path(f"{name}.py").write_text(
            "raise SystemExit('imported from the working directory')", encoding="utf-8"
        )
    path = write(nproc, max_steps=5)
    command = [*CETNET, "study", str(path)]
    subprocess.run(command, check=True, timeout=SECONDS)
    for variant, overrides in VARIANTS.items():
        arguments = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        arguments += ["training.seed=1", f"run_dir=alone/{variant}", "--nproc", str(nproc)]
        subprocess.run([*CETNET, "train", "base.yaml", *arguments], check=True, timeout=SECONDS)
        alone, ours = Path("alone", variant), Path("runs/real", variant, "seed1")
        assert read(ours)["splits"] == read(alone)["splits"]
        assert read(ours)["train"] == read(alone)["train"]
        commands = [read(run, "environment.json")["command"].split()[:3] for run in (ours, alone)]
        assert commands[0] == commands[1]
        assert read(ours, "environment.json")["world_size"] == nproc


def test_a_run_that_fails_says_why(write: Callable[..., Path], data: Path) -> None:
    shutil.copytree(data, "data")
    schema = Path("data/schema.yaml")
    too_short = schema.read_text(encoding="utf-8").replace("max_length: 6", "max_length: 5")
    schema.write_text(too_short, encoding="utf-8")  # which shows when rows are read
    path = write(variants={"single": {"data.path": "data"}})
    command = [*CETNET, "study", str(path)]
    study = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
    assert study.returncode == 2
    *_, of_the_run, of_the_study = study.stderr.splitlines()
    assert of_the_run.startswith("cetnet: data/train/part-")
    assert "longer than max_length 5" in of_the_run
    assert re.match(
        r"cetnet: study real: run single, seed 1 failed \(exit code 2; .*; fix it and start", of_the_study
    )


# What a scheduler tells is the study, or, as `timeout` and `tini -g` do, its whole group.
@pytest.mark.parametrize(("nproc", "tell"), [(1, os.kill), (2, os.killpg)])
def test_told_to_stop_it_ends_with_75_and_goes_on_when_it_is_started_again(
    write: Callable[..., Path], tmp_path: Path, nproc: int, tell: Callable[[int, int], None]
) -> None:
    path = write(nproc, variants={"single": {}})
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    recorder = f"{ROOT / 'benchmarks/chaos/recorder'}:{os.environ.get('PYTHONPATH', ROOT)}"
    environment = os.environ | {"PYTHONPATH": recorder, "LEDGER": str(ledger), "HOLD_AT": "5"}
    command = [*CETNET, "study", str(path)]
    with (
        Path("log.txt").open("w", encoding="utf-8") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as study,
    ):
        try:
            until(lambda: len(list(ledger.glob("held-*"))) == nproc)
            tell(study.pid, signal.SIGTERM)
            until(lambda: "SIGTERM: stopping after this step" in Path("log.txt").read_text(encoding="utf-8"))
            (ledger / "release").touch()
            assert study.wait(SECONDS) == os.EX_TEMPFAIL
        finally:
            (ledger / "release").touch()
            study.terminate()
    assert "Traceback" not in Path("log.txt").read_text(encoding="utf-8")
    assert not Path("runs/real/single/seed1/result.json").exists()
    again = subprocess.run(command, check=True, timeout=SECONDS, capture_output=True, text=True)
    assert "resumed at step" in again.stdout + again.stderr
    assert read(Path("runs/real/single/seed1"))["steps"] == 16


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, Path("log.txt").read_text(encoding="utf-8")
        time.sleep(0.1)
