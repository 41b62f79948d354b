"""The program as its users start it: `cetnet` with several processes, torchrun, and `torchx run`.

All of it from a folder that has packages called as the program's own, and none of which may be imported.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cetnet.trainer.processes.launcher import CETNET
from tests.data import write_dataset
from tests.processes import run_settings

BIN = Path(sys.executable).parent
OWN_COMPONENT = """
import torch
from cetnet.models.component import Component, ComponentConfig, Output

class MeanMLP(Component):
    Config = ComponentConfig

    def __init__(self, shape, config):
        super().__init__()
        self.output_dim = 8
        self.hidden = torch.nn.Linear(shape.embedding_dim + shape.num_dense, 8)
        self.logit = torch.nn.Linear(8, 1)

    def forward(self, inputs):
        hidden = self.hidden(torch.cat([inputs.tokens.mean(1), inputs.dense], dim=1))
        return Output(hidden, self.logit(hidden).squeeze(-1))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment file in the working directory of all that follows."""
    folder = tmp_path_factory.mktemp("launch")
    write_dataset(folder / "data", {"train": 640, "validation": 100, "test": 100})
    (folder / "config.yaml").write_text(
        yaml.safe_dump(run_settings(folder / "data", folder / "run"), sort_keys=False)
    )
    for file in (
        "cetnet/__init__.py",
        "models/__init__.py",
        "models/config.py",
        "trainer/__init__.py",
        "launch/__init__.py",
        "benchmarks/__init__.py",
    ):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("raise RuntimeError('imported from the working directory')\n")
    return folder / "config.yaml"


def call(config: Path, *arguments: str | Path, code: int = 0, **environment: str) -> str:
    """Run a program of the environment in the folder of the configuration; returns what it printed."""
    result = subprocess.run(
        [str(BIN / str(arguments[0])), *map(str, arguments[1:])],
        cwd=config.parent,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_train_then_evaluate_predict_and_plan(config: Path) -> None:
    run, data = config.parent / "run", config.parent / "data"
    said = call(config, "cetnet", "train", config, "--nproc", "2")
    assert "Warning" not in said
    result = json.loads((run / "result.json").read_text())
    assert result["rows"] == 640
    assert result["steps"] == 10

    table = call(config, "cetnet", "evaluate", run, data, "--split", "test")
    told = [float(number) for number in re.findall(r"\d\.\d+", table)]
    for output in ("fused", "interformer", "dhen", "dcnv2"):
        assert any(
            number == pytest.approx(result["splits"]["test"][f"ne/{output}"], abs=2e-5) for number in told
        )

    call(config, "cetnet", "predict", run, data, "--split", "test", "--out", config.parent / "scores.parquet")
    scores, saved = (
        pq.read_table(path)
        for path in (config.parent / "scores.parquet", run / "predictions" / "test.parquet")
    )
    assert scores.column_names == ["row", "label", "group", "weight", "fused", "interformer", "dhen", "dcnv2"]
    # Trained and scored by 2 processes, then loaded and scored by one.
    assert scores["fused"].to_pylist() == pytest.approx(saved["fused"].to_pylist(), abs=1e-6)

    assert "interformer__item" in call(config, "cetnet", "plan", config, "--cluster", "2x8:h100")
    assert "finished" in call(config, "cetnet", "train", config, "--resume", code=2)


def test_torchx_runs_the_component_and_tensorboard_reads_it(config: Path) -> None:
    run = config.parent / "torchx"
    call(
        config,
        *("torchx", "run", "-s", "local_cwd", "cetnet.train", "--config", config, "-j", "1x2"),
        f"run_dir={run}",
    )
    environment = json.loads((run / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert environment["torchx"]["TORCHX_JOB_ID"].startswith("local_cwd://torchx/cetnet-")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for output in ("fused", "interformer", "dhen", "dcnv2"):
        for kind in ("window", "lifetime"):
            assert [event.step for event in events.Scalars(f"ne/{kind}/{output}")] == list(range(1, 11))
        assert len(events.Scalars(f"test/ne/{output}")) == 1


def test_torchrun_starts_the_program(config: Path) -> None:
    torchrun = ("torchrun", "--standalone", "--nproc-per-node", "1", "--no-python")
    call(config, *torchrun, "cetnet", "train", "config.yaml", "run_dir=torchrun")
    assert json.loads((config.parent / "torchrun" / "result.json").read_text())["rows"] == 640


def test_a_study_trains_a_component_of_an_installed_package_called_models(config: Path) -> None:
    package = config.parent / "site" / "models"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "mean_mlp.py").write_text(OWN_COMPONENT)
    own = {"mine": {"kind": "models.mean_mlp.MeanMLP", "embedding_dim": 4}}
    study = {
        "name": "own",
        "base": "config.yaml",
        "nproc": 2,
        "seeds": [1],
        "baseline": "own",
        "variants": {"own": {"model.components": own}},
    }
    (config.parent / "study.yaml").write_text(yaml.safe_dump(study))
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    call(config, "cetnet", "study", "study.yaml", PYTHONPATH=path)
    run = config.parent / "runs" / "own" / "own" / "seed1"
    assert 0 < json.loads((run / "result.json").read_text())["splits"]["test"]["ne/fused"] < 2
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    assert (config.parent / "runs" / "own" / "report.html").exists()


def test_a_component_that_lies_in_the_working_directory_is_refused(config: Path) -> None:
    (config.parent / "nearby.py").write_text(OWN_COMPONENT)
    train = ("train", "config.yaml", "run_dir=refused", "model.components={a: {kind: nearby.MeanMLP}}")
    rank_0 = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    rank_0 |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for said in (
        call(config, "cetnet", *train, "--nproc", "2", code=2),
        call(config, *CETNET, *train, code=2, **rank_0),  # a process of --nproc
    ):
        assert "cannot be imported: No module named 'nearby'" in said
        assert said.count("\n") == 1
    assert not (config.parent / "refused").exists()
