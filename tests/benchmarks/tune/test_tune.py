"""A real tuning: killed in the middle and begun again, on data without the split that the study reports."""

import csv
import io
import os
import shutil
import signal
import subprocess
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import yaml

from cetnet.benchmarks.study.definition import Study, runs_of
from cetnet.benchmarks.study.jobs import Jobs
from cetnet.benchmarks.tune.check import check_tuning, component_fields
from cetnet.benchmarks.tune.run import tune_study
from cetnet.trainer.cli import run_in_fork
from cetnet.trainer.console import PlainConsole
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.launcher import CETNET
from tests.data import write_dataset
from tests.waiting import until

BASE = {
    "data": {"path": "data", "batch_size": 64, "lanes": 4, "shuffle_rows": 100},
    "model": {"components": {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [16]}}},
    "training": {"device": "cpu"},
}
FINALMLP = {"kind": "finalmlp", "embedding_dim": 4, "hidden_units": [16], "hidden_units2": [16]}
STUDY = {
    "name": "small",
    "base": "base.yaml",
    "nproc": 1,
    "seeds": [1, 2],
    "baseline": "finalmlp",
    "common": {"optimizer.clip_norm": 5.0, "data.prefetch": 2},
    "variants": {"finalmlp": {"model.components": {"finalmlp": FINALMLP}}},
    "tune": {
        "trials": 4,
        "eta": 2,
        "rungs": 2,
        "shared": {
            "optimizer.dense.lr": {"low": 1e-3, "high": 1e-1, "log": True},
            "model.components.*.hidden_units2": {"choices": [[8], [16]]},  # FinalMLP's alone
        },
        "variants": {"final*": {"data.batch_size": {"choices": [64, 32]}}},
    },
}


@pytest.fixture(scope="module", autouse=True)
def no_server() -> None:
    """There is one fork server a process, and another test's may have loaded something else."""
    forkserver._forkserver._stop()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_dataset(Path("data"))
    shutil.rmtree("data/test")
    write(STUDY)
    return tmp_path


def write(study: dict[str, Any], base: dict[str, Any] = BASE) -> Path:
    Path("base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return Path("study.yaml")


def tune(path: Path = Path("study.yaml"), jobs: int = 1) -> str:
    shown = io.StringIO()
    tune_study(
        path,
        lambda _, console: Jobs(run_in_fork, console),
        component_fields,
        jobs=jobs,
        console=PlainConsole(file=shown, width=200),
    )
    return shown.getvalue()


def table(folder: Path) -> list[dict[str, str]]:
    """Every trial, but for what a machine or a kill changes."""
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return [
            {key: value for key, value in row.items() if key not in ("rows", "seconds")}
            for row in csv.DictReader(file)
        ]


def test_killed_in_the_middle_and_begun_again_it_chooses_as_if_unbroken(folder: Path) -> None:
    check_tuning(Path("study.yaml"))
    command = [*CETNET, "tune", "study.yaml", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as killed:
        until(lambda: list(Path("runs").glob("small/tune/*/*/seed*/metrics.jsonl")), "a trial that trains")
        os.kill(killed.pid, signal.SIGKILL)
    assert not Path("runs/small/tune/trials.csv").exists()
    shown = tune(jobs=2)
    resumed = table(Path("runs/small/tune"))
    chosen = yaml.safe_load(Path("runs/small/tune/variants.yaml").read_text(encoding="utf-8"))
    assert "finalmlp: after 448 rows 2 of 4 trials go on" in shown
    Path("runs").rename("broken")

    tune(jobs=2)
    assert table(Path("runs/small/tune")) == resumed
    assert yaml.safe_load(Path("runs/small/tune/variants.yaml").read_text(encoding="utf-8")) == chosen
    assert not list(Path("runs").glob("**/step-*"))  # checkpoints of trials that aren't gone on with

    assert [row["trial"] for row in resumed] == ["0", "1", "2", "3"]
    # The best half at the rung came to the end, and of them the best on validation is chosen.
    at_rung = sorted(resumed, key=lambda row: float(row["NE at rung 1"]))
    assert [row["state"] for row in at_rung[2:]] == ["stopped at rung 1"] * 2
    by_validation = sorted(at_rung[:2], key=lambda row: float(row["NE of validation"]))
    assert [row["state"] for row in by_validation] == ["chosen", "finished"]
    assert {""} < {row["model.components.*.hidden_units2"] for row in resumed} <= {"", "[8]", "[16]"}
    assert chosen["finalmlp"]["optimizer.clip_norm"] == 5.0  # another study's `common` may be another
    assert "data.prefetch" not in chosen["finalmlp"]
    if best := by_validation[0]["optimizer.dense.lr"]:
        assert chosen["finalmlp"]["optimizer.dense.lr"] == float(best)

    # Begun once more there is nothing to do; a study takes the chosen settings.
    shutil.copy("runs/small/tune/variants.yaml", "chosen.yaml")
    assert "finalmlp: chosen on validation: trial " in tune()
    study = write({key: value for key, value in STUDY.items() if key != "tune"} | {"variants": "chosen.yaml"})
    assert len(runs_of(Study.load(study), study)) == 2
    report = Path("runs/small/tune/report.md").read_text(encoding="utf-8")
    assert "Expected best NE at the first rung after k trials" in report
    assert str(folder) not in report + Path("runs/small/tune/tune.json").read_text(encoding="utf-8")


def test_a_trial_whose_settings_fail_is_left_out(folder: Path) -> None:  # noqa: ARG001
    choices = {"optimizer.dense.lr": {"choices": [0.01, 1e6]}}
    one = {
        "variants": {"dcnv2": {}},
        "baseline": "dcnv2",
        "tune": {"trials": 4, "rungs": 1, "shared": choices},
    }
    path = write(STUDY | one)
    shown = tune(path, jobs=2)
    rows = table(Path("runs/small/tune"))
    assert "failed, and is left out (exit code 2: cetnet: " in shown
    for row in rows:
        failed = row["optimizer.dense.lr"] == "1000000.0"
        assert (row["state"] == "failed") == bool(row["why it failed"]) == failed
    assert {row["state"] for row in rows} == {"failed", "finished", "chosen"}

    Path("runs").rename("before")
    with pytest.raises(
        UserError, match=r"dcnv2, trial 0, seed 1001 failed \(exit code 2: .*; fix it and start"
    ):
        tune(write(STUDY | one, BASE | {"optimizer": {"dense": {"lr": 1e6}}}))


def test_values_that_no_run_takes_are_found_before_one_trains(folder: Path) -> None:  # noqa: ARG001
    wrong = {"trials": 3, "shared": {"optimizer.dense.lr": {"low": -1, "high": 1.0}}}
    with pytest.raises(UserError, match=r"study\.yaml, tune, variant 'finalmlp': optimizer\.dense\.lr"):
        check_tuning(write(STUDY | {"tune": wrong}))
    students = {"trials": 3, "shared": {"training.teacher": {"choices": [None, "runs/before"]}}}
    with pytest.raises(UserError, match=r"a student can't be judged by progressive NE, .*make tune\.rungs 1"):
        check_tuning(write(STUDY | {"tune": students}))
    with pytest.raises(UserError, match=r"training\.teacher: runs/before: no config\.yaml"):
        check_tuning(write(STUDY | {"tune": students | {"rungs": 1}}))
    with pytest.raises(UserError, match="there is no `tune` section"):
        check_tuning(write({key: value for key, value in STUDY.items() if key != "tune"}))
