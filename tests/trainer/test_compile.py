"""Compiled components compute what they compute without."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch._inductor.config

from cetnet.models.cetnet import CETNet
from cetnet.trainer.check_run import check_run
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.evaluate import predict_run
from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.session import compile_components
from cetnet.trainer.train import train
from tests.data import write_dataset
from tests.processes import run_processes, run_settings, train_all
from tests.trainer.test_every_model import component


def settings(folder: Path, compile: bool) -> dict[str, Any]:
    return run_settings(
        folder / "data",
        folder / f"compile-{compile}",
        model={"components": {"dnn": component("dnn")}},
        training={"compile": compile, "log_every": 1},
        checkpoint={"every_steps": 5},
        evaluation={"splits": ["test"]},
    )


def run(run_settings: dict[str, Any], resume: bool = False) -> dict[str, Any]:
    with process_group("cpu") as processes:
        result = train(
            check_run(RunConfig.model_validate(run_settings), processes.world_size, resume), processes
        )
    assert result is not None
    return result


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    """What `training.compile` needs, and a machine may lack."""
    model = SimpleNamespace(towers={})
    try:
        compile_components(cast(CETNet, model), torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    write_dataset(folder / "data", {"train": 640, "test": 100})
    return folder


def test_results_are_equal_and_a_run_may_go_on_without(folder: Path) -> None:
    eager, compiled = (run(settings(folder, compile)) for compile in (False, True))
    assert compiled["train"] == pytest.approx(eager["train"], rel=1e-5)
    assert compiled["splits"]["test"] == pytest.approx(eager["splits"]["test"], rel=1e-5)
    run_dir = folder / "compile-True"
    (run_dir / "result.json").unlink()
    shutil.rmtree(run_dir / "checkpoints/step-000000010")
    resumed = run(settings(folder, False) | {"run_dir": str(run_dir)}, resume=True)
    assert resumed["train"] == pytest.approx(eager["train"], rel=1e-5)


def test_two_processes(folder: Path) -> None:
    """Under DDP."""
    runs = [
        settings(folder, compile) | {"run_dir": str(folder / f"two-{compile}")} for compile in (False, True)
    ]
    run_processes(train_all, 2, runs)
    eager, compiled = (json.loads((Path(run["run_dir"]) / "result.json").read_text()) for run in runs)
    assert compiled["train"] == pytest.approx(eager["train"], rel=1e-5)


NO_COMPILER = {"cpp.cxx": (None, "no-such-compiler")}


def test_scoring_needs_no_compiler(folder: Path) -> None:
    with torch._inductor.config.patch(NO_COMPILER):
        predict_run(folder / "compile-True", Dataset(folder / "data", "test"), folder / "scores.parquet")
    assert (folder / "scores.parquet").exists()


def test_a_missing_compiler_is_named(folder: Path) -> None:
    missing = pytest.raises(UserError, match=r"training\.compile needs a C\+\+ compiler")
    with torch._inductor.config.patch(NO_COMPILER), missing:
        run(settings(folder, True) | {"run_dir": str(folder / "none")})
