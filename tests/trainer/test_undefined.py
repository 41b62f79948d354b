"""Metrics that don't exist: said, and nothing comes of them; found before the run where footers tell."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cetnet.trainer.checkpoint.trainer_state import TrainState, read_train_state
from cetnet.trainer.config import EarlyStoppingConfig, load_config
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.early_stopping import take_in
from tests.data import write_dataset

Run = Callable[..., tuple[int, str]]
MODEL = {"components": {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]}}}
STOPPING = "evaluation={{splits: [test], every_epoch: true, early_stopping: {{monitor: {}, patience: 1}}}}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `data`, of which rows have weights, and `experiment.yaml`: 4 steps an epoch."""
    monkeypatch.chdir(tmp_path)
    write_dataset(Path("data"), {"train": 60, "validation": 60, "test": 60}, row_group_size=20, weight=True)
    settings = {
        "run_dir": "run",
        "data": {"path": "data", "batch_size": 16, "lanes": 4},
        "model": MODEL,
        "training": {"device": "cpu"},
        "evaluation": {"splits": ["test"]},
    }
    Path("experiment.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return tmp_path


def fill(split: str, column: str, value: Any, *, told: bool = True) -> None:
    """Give every row of a split a value, null if it is None."""
    for file in Path("data", split).iterdir():
        table = pq.read_table(file)
        place, kind = table.column_names.index(column), table[column].type
        filled = pa.array([value] * len(table), kind)
        table = table.set_column(place, column, filled)
        pq.write_table(table, file, row_group_size=20, write_statistics=told)


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    monitor=st.sampled_from(["ne/fused", "auc/fused"]),
    patience=st.integers(1, 3),
)
def test_the_first_of_the_best_is_the_best(values: list[float], monitor: str, patience: int) -> None:
    config, state = EarlyStoppingConfig(monitor=monitor, patience=patience), TrainState()
    sign = -1 if monitor == "auc/fused" else 1
    for number, value in enumerate(values):
        said = take_in(config, {monitor: value}, state)
        assert (said is None) == all(sign * value < sign * before for before in values[:number])
        assert state.best == sign * min(sign * each for each in values[: number + 1])


@pytest.mark.usefixtures("folder")
def test_a_monitor_without_a_value_decides_nothing(run: Run) -> None:
    fill("validation", "click", 0, told=False)
    code, said = run(
        "train", "experiment.yaml", STOPPING.format("auc/fused"), "training.epochs=3", "optimizer.decay=none"
    )
    assert code == 0
    assert "step 12/12" in said  # patience is 1
    why = "validation: no NE, AUC, gAUC, calibration (-): every row that counts has the label 0\n"
    assert said.count(why) == 1
    assert said.count("auc/fused is undefined") == 1
    assert said.count("no evaluation is the best by auc/fused: the result is the model of the last step") == 1
    assert "nan" not in said
    assert not Path("run/checkpoints/best").exists()
    evaluations = [
        json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["lr_scale"] for line in evaluations if line["kind"] == "train"] == [1, 1, 1]

    # Earlier versions let it decide.
    checkpoint = Path("run/checkpoints/step-000000012")
    saved = json.loads((checkpoint / "trainer.json").read_text(encoding="utf-8"))
    spoilt = {"best": math.nan, "bad_evaluations": 2, "plateau": 0.01, "stopped": True}
    config = load_config(Path("run/config.yaml"))
    state = read_train_state(
        saved | {"progress": saved["progress"] | spoilt}, config, Dataset(Path("data"), "train"), checkpoint
    )
    assert asdict(state) == saved["progress"]

    code, said = run("evaluate", "run", "data", "--split", "validation")
    assert code == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("monitor", "column", "value", "why"),
    [
        ("auc/fused", "click", 0, "the label ('click') is 0 in every row"),
        ("ne/dcnv2", "click", 1, "the label ('click') is 1 in every row"),
        ("gauc/fused", "click", 1, "the label ('click') is 1 in every row"),
        ("gauc/fused", "session", None, "the group ('session') is null in every row"),
        ("logloss/fused", "weight", 0, "the weight ('weight') is 0 in every row"),
    ],
)
def test_what_footers_tell_is_found_before_the_run(
    monitor: str, column: str, value: Any, why: str, run: Run
) -> None:
    fill("validation", column, value)
    code, said = run("train", "experiment.yaml", STOPPING.format(monitor))
    assert code == 2
    assert said.startswith(
        f"cetnet: data/validation: {why}, so evaluation.early_stopping.monitor='{monitor}'"
    )
    assert not Path("run").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("told", [True, False])
def test_a_run_that_learns_nothing_but_its_only_label(told: bool, run: Run) -> None:
    fill("train", "click", 1, told=told)
    fill("test", "session", None)
    code, said = run("train", "experiment.yaml", "training.epochs=2", "training.max_steps=5")
    assert code == 0
    said = " ".join(said.split())
    warning = r"WARNING: data/train: every row( that counts)? has the label 1, so NE is undefined"
    # At the start, if known; at the end of the first epoch, and at the end.
    assert len(re.findall(warning, said)) == 2 + told
    assert "NE - window - lifetime" in said
    assert "test: no gAUC (-): no group has rows of both labels" in said
    assert "gAUC leaves out 60 rows without a group ('session' is null)" in said
    predictions = pq.read_table("run/predictions/test.parquet")
    assert predictions["group"].null_count == 60
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))
    assert result["splits"]["test"]["gauc/fused"] is None
    assert result["splits"]["test"]["auc/fused"] > 0


@pytest.mark.usefixtures("folder")
def test_a_run_without_a_weight(run: Run) -> None:
    fill("train", "weight", 0)
    code, said = run("train", "experiment.yaml")
    assert code == 2
    assert said.startswith(
        "cetnet: data/train: the weight ('weight') is 0 in every row, so nothing can be learned"
    )
    fill("train", "weight", 0, told=False)
    code, said = run("train", "experiment.yaml")
    assert code == 0
    assert "WARNING: data/train: no row has a weight" in said
