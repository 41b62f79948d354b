"""What ends a study before its first run."""

import re
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cetnet.benchmarks.study.check import check_runs, check_study
from cetnet.benchmarks.study.definition import Study, runs_of
from cetnet.benchmarks.study.run import run_study
from cetnet.trainer.cli import study
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes import signals
from tests.data import write_dataset

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a study of two variants, the second one changed by `overrides`, into the working directory."""
    monkeypatch.chdir(tmp_path)
    write_dataset(Path("data"), {"train": 60, "validation": 60, "test": 60})
    base = {
        "data": {"path": "data", "batch_size": 64},
        "model": {"components": {"single": {"kind": "dcnv2", "embedding_dim": 4}}},
    }
    Path("base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")

    def write(overrides: dict[str, Any] | None = None, **changes: Any) -> Path:
        variants: dict[str, Any] = {"one": {}, "two": overrides or {}}
        study = {"name": "small", "base": "base.yaml", "nproc": 2, "seeds": [1, 2], "baseline": "one"}
        study |= {"variants": variants} | changes
        Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
        return Path("study.yaml")

    return write


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        (
            {"evaluation.splits": ["validation"]},
            {},
            "variant 'two': the study reports split 'test', which evaluation.splits (validation) lacks",
        ),
        ({}, {"split": "tests"}, "variant 'one': the study reports split 'tests'"),
        ({"training.sede": 1}, {}, "variant 'two': training.sede: unknown key; did you mean seed?"),
        ({"data.path": "elsewhere"}, {}, "variant 'two': elsewhere/schema.yaml: not found"),
        ({"data.lanes": 3, "data.batch_size": 33}, {}, "variant 'two': data.lanes=3"),
        ({}, {"out": "base.yaml"}, "base.yaml is not a directory one may write to; choose another out"),
        ({}, {"out": "taken"}, "taken/report.html is a directory"),
    ],
)
def test_what_is_found(
    overrides: dict[str, Any], changes: dict[str, Any], message: str, write: Write
) -> None:
    Path("taken/report.html").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(message)):
        check_study(write(overrides, **changes))
    assert not Path("runs").exists()


@pytest.fixture
def ending_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of own components that end whoever imports them."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_component.py").write_text("1 / 0", encoding="utf-8")
    (tmp_path / "killed_component.py").write_text("import os\nos.kill(os.getpid(), 9)", encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> None:
    """There is one fork server a process, and another test's may have loaded something else."""
    forkserver._forkserver._stop()


def train_and_fail(_arguments: list[str]) -> None:
    sys.exit(3)


def of_component(**keys: Any) -> dict[str, Any]:
    return {"model.components": {"own": {"embedding_dim": 4, **keys}}}


@pytest.mark.usefixtures("server", "ending_components")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.components.single.dpth": 3}, "model.components.single.dpth: unknown key; keys here: kind"),
        (of_component(kind="dnn", hidden_units=[0]), "model.components.own: hidden_units: 0 is no"),
        (of_component(kind="dnn", dropout=2), "model.components.own.dropout: Input should be less"),
        (of_component(kind="nowhere.Model"), "model.components.own: component kind 'nowhere.Model' cannot"),
        (of_component(kind="broken_component.Model"), "could not be checked, as said above; fix it"),
        ({"model.components.single.embedding_dim": 6}, "model: table single__user has embedding_dim 6"),
        ({"sharding.dense_tables": ["zzz"]}, "sharding.dense_tables: 'zzz' matches no table; tables: single"),
        ({"sharding.cluster.ddr_gb": 1e-6}, "no sharding plan: "),
        ({"checkpoint.path": "/proc/x"}, "/proc/x/two/seed1: /proc is not a directory one may write to"),
        ({"optimizer.sparse.kind": "adam", "training.device": "cpu"}, "optimizer.sparse.kind=adam runs on"),
    ],
)
def test_what_needs_torch_is_found_before_the_first_run(
    overrides: dict[str, Any], message: str, write: Write
) -> None:
    path = write(overrides)
    with pytest.raises(UserError, match=re.escape(f"study.yaml, variant 'two': {message}")):
        run_study(path, train_and_fail, check_runs)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("server")
def test_the_command_checks_runs_first(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "pass_on_signals", lambda *_: None)  # this process is not the command's own
    with pytest.raises(
        UserError, match=r"^study\.yaml, variant 'two': model\.components\.own\.nope: unknown key"
    ):
        study(write(of_component(kind="dnn", nope=3)))
    assert not Path("runs").exists()


@pytest.mark.usefixtures("server", "ending_components")
def test_a_check_that_is_killed_is_said(write: Write) -> None:
    path = write(of_component(kind="killed_component.Model"))
    with pytest.raises(UserError, match=r"^study.yaml: its runs could not be checked \(killed by SIGKILL"):
        run_study(path, train_and_fail, check_runs)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("server")
def test_each_unfinished_run_is_checked_as_it_will_be_trained(write: Write) -> None:
    path = write({"checkpoint.path": "kept"})
    runs = runs_of(Study.load(path), path)
    check_runs(runs, path)  # nothing is wrong
    Path("kept/two/seed2/step-00000001").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"variant 'two': checkpoint\.path=kept/two/seed2 has the checkpoints"
    ):
        check_runs(runs, path)
    runs[-1].folder.mkdir(parents=True)  # resumed
    check_runs(runs, path)
    assert not list(Path("runs").rglob("*.*"))


def test_a_split_of_one_class_is_told(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    check_study(write())
    assert capfd.readouterr().err == ""
    for file in Path("data/test").iterdir():
        table = pq.read_table(file)
        label = pa.array([1] * len(table), pa.int8())
        pq.write_table(table.set_column(table.column_names.index("click"), "click", label), file)
    check_study(write())
    assert capfd.readouterr().err.count("WARNING: data/test: every row has the label 1") == 1
