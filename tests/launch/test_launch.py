"""The program as its users start it: `cetnet` with several processes, and `torchx run`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.data import write_dataset
from tests.paths import ROOT
from tests.processes import run_settings

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    write_dataset(folder / "data", {"train": 640, "validation": 100, "test": 100})
    (folder / "config.yaml").write_text(
        yaml.safe_dump(run_settings(folder / "data", folder / "run"), sort_keys=False)
    )
    return folder / "config.yaml"


def call(*arguments: str | Path, code: int = 0) -> str:
    """Run a program of the environment in the repository; returns what it printed."""
    result = subprocess.run(
        [str(BIN / str(arguments[0])), *map(str, arguments[1:])],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_train_then_evaluate_predict_and_plan(config: Path) -> None:
    run, data = config.parent / "run", config.parent / "data"
    said = call("cetnet", "train", config, "--nproc", "2")
    assert "Warning" not in said
    result = json.loads((run / "result.json").read_text())
    assert result["rows"] == 640
    assert result["steps"] == 10

    table = call("cetnet", "evaluate", run, data, "--split", "test")
    for output in ("fused", "interformer", "dhen", "dcnv2"):
        assert str(result["splits"]["test"][f"ne/{output}"])[:6] in table

    call("cetnet", "predict", run, data, "--split", "test", "--out", config.parent / "scores.parquet")
    scores, saved = (
        pq.read_table(path)
        for path in (config.parent / "scores.parquet", run / "predictions" / "test.parquet")
    )
    assert scores.column_names == ["row", "label", "group", "weight", "fused", "interformer", "dhen", "dcnv2"]
    # Trained and scored by 2 processes, then loaded and scored by one.
    assert scores["fused"].to_pylist() == pytest.approx(saved["fused"].to_pylist(), abs=1e-6)

    assert "interformer__item" in call("cetnet", "plan", config, "--cluster", "2x8:h100")
    assert "finished" in call("cetnet", "train", config, "--resume", code=2)


def test_torchx_runs_the_component_and_tensorboard_reads_it(config: Path) -> None:
    run = config.parent / "torchx"
    call(
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
