"""A loss or gradient that isn't finite: named, and the step either stops the run or changes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cetnet.trainer.check_run import check_run
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import UserError
from cetnet.trainer.nonfinite import Fault, FaultPolicy
from cetnet.trainer.processes.distributed import Processes
from cetnet.trainer.train import train
from tests.data import write_dataset
from tests.processes import run_processes, run_settings

BAD_STEP, STEPS = 3, 4

# The second of two processes has the fault; or the only one, which has no RANK.
COMPONENT = f"""
import os
from typing import Literal

import torch
from torch import nn

from cetnet.models.component import Component, Output
from cetnet.models.component_config import ComponentConfig


class Spoil(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[-1] = float("nan")
        return gradient


class FaultyConfig(ComponentConfig):
    fault: Literal["none", "logit", "gradient", "weight"] = "none"


class Faulty(Component):
    Config = FaultyConfig
    output_dim = 4

    def __init__(self, shape, config):
        super().__init__()
        self.norm = nn.BatchNorm1d(config.embedding_dim)
        self.linear = nn.Linear(config.embedding_dim, 4)
        self.bias = nn.Parameter(torch.zeros(2, 4))
        self.fault, self.step = config.fault, 0

    def forward(self, inputs):
        self.step += self.training
        now = self.training and os.environ.get("RANK", "1") == "1" and self.step == {BAD_STEP}
        tokens, bias = inputs.tokens, self.bias
        if now and self.fault == "gradient":
            tokens = Spoil.apply(tokens)
        if now and self.fault == "weight":
            bias = Spoil.apply(bias)
        embedding = self.linear(self.norm(tokens.mean(1))) + bias.sum(0)
        logit = embedding.sum(1)
        if now and self.fault == "logit":
            logit = logit * logit.new_tensor([1.0] * (len(logit) - 1) + [float("nan")])
        return Output(embedding, logit)
"""


def settings(folder: Path, fault: str, policy: str) -> dict[str, Any]:
    components = {
        "faulty": {"kind": "faulty_component.Faulty", "embedding_dim": 4, "fault": fault},
        "dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8], "batch_norm": True},
    }
    run = run_settings(
        folder / "data",
        folder / f"{fault}-{policy}",
        model={"components": components},
        checkpoint={"every_steps": 1, "keep": 100},
        evaluation={"splits": []},
    )
    run["training"] |= {"nonfinite": policy, "max_steps": STEPS}
    if fault in ("dense", "dense_weight"):
        components["faulty"]["fault"] = "gradient" if fault == "dense" else "weight"
        run["sharding"] = {"dense_tables": ["*"]}
    if fault == "split":
        components["faulty"]["fault"] = "gradient"
        run["sharding"] = {"constraints": {"*": {"sharding_types": ["row_wise"]}}}
        run["optimizer"] = {"sparse": {"kind": "adagrad", "lr": 0.1}, "clip_norm": 1.0}
    if fault == "overflow":
        components["faulty"]["fault"] = "none"
        run["optimizer"] = {"dense": {"kind": "sgd", "lr": 1e3, "weight_decay": 1e37}}
    return run


def train_until_it_stops(processes: Processes, folder: Path, cases: list[tuple[str, str]]) -> None:
    for fault, policy in cases:
        try:
            train(
                check_run(RunConfig.model_validate(settings(folder, fault, policy)), processes.world_size),
                processes,
            )
        except UserError as error:
            (folder / f"{fault}-{policy}-{processes.rank}.error").write_text(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes, the second of which has a fault in its third step."""
    folder = tmp_path_factory.mktemp("faults")
    write_dataset(folder / "data", {"train": 1000, "test": 60})
    (folder / "faulty_component.py").write_text(COMPONENT)
    cases = [
        ("none", "stop"),
        ("logit", "stop"),
        ("logit", "skip"),
        ("gradient", "stop"),
        ("gradient", "skip"),
        ("weight", "skip"),
        ("overflow", "skip"),
        ("dense", "skip"),
        ("dense_weight", "skip"),
        ("split", "skip"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        run_processes(train_until_it_stops, 2, folder, cases)
    return folder


def checksums(run: Path, step: int) -> dict[str, Any]:
    """Of everything that a step's checkpoint has of parameters, buffers and optimizers."""
    manifest = json.loads((run / f"checkpoints/step-{step:09d}/manifest.json").read_text())
    found = {name: entry for name, entry in manifest.items() if name.endswith(".distcp")}
    assert found
    return found


def steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def error_of(folder: Path, case: str) -> str:
    """What the run ended with, the same on both ranks."""
    errors = {(folder / f"{case}-{rank}.error").read_text() for rank in (0, 1)}
    (error,) = errors
    assert "\n" not in error
    return error


@pytest.mark.parametrize("fault", ["logit", "gradient"])
def test_a_skipped_step_changes_nothing_and_training_goes_on(folder: Path, fault: str) -> None:
    run, healthy = folder / f"{fault}-skip", folder / "none-stop"
    assert steps(run) == list(range(1, STEPS + 1))
    for step in range(1, BAD_STEP):
        assert checksums(run, step) == checksums(healthy, step)
    assert checksums(run, BAD_STEP) == checksums(run, BAD_STEP - 1) != checksums(healthy, BAD_STEP)
    assert checksums(run, BAD_STEP + 1) != checksums(run, BAD_STEP)


@pytest.mark.parametrize("case", ["dense", "dense_weight", "split"])
def test_a_skipped_step_changes_nothing_where_tables_are_dense_or_split_by_rows(
    folder: Path, case: str
) -> None:
    run = folder / f"{case}-skip"
    assert checksums(run, BAD_STEP - 1) == checksums(run, BAD_STEP) != checksums(run, BAD_STEP + 1)


@pytest.mark.parametrize("fault", ["logit", "gradient"])
def test_a_skipped_step_is_counted_and_left_out_of_the_progressive_ne(folder: Path, fault: str) -> None:
    lines = [json.loads(line) for line in (folder / f"{fault}-skip/metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    assert [line["skipped_rows"] for line in lines] == [0, 0, 64, 64]
    key = "ne/lifetime/fused"
    assert lines[BAD_STEP - 1][key] == lines[BAD_STEP - 2][key]
    assert lines[BAD_STEP - 1]["loss"] is None
    result = json.loads((folder / f"{fault}-skip/result.json").read_text())
    assert (result["steps"], result["skipped_steps"], result["skipped_rows"]) == (STEPS, 1, 64)
    assert 0 < result["train"][key] < 2


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("logit", "the output of component 'faulty' is NaN or infinite in row"),
        ("gradient", "the gradient of component 'faulty' by its embeddings is NaN or infinite in row"),
    ],
)
def test_a_run_stops_before_the_step_and_names_it(folder: Path, fault: str, named: str) -> None:
    run = folder / f"{fault}-stop"
    assert steps(run) == list(range(1, BAD_STEP))
    assert checksums(run, BAD_STEP - 1) == checksums(folder / "none-stop", BAD_STEP - 1)
    assert not (run / "result.json").exists()
    error = error_of(folder, f"{fault}-stop")
    assert re.match(rf"step {BAD_STEP}: {named} \d+ \(split 'train'\)\. Lower optimizer", error)
    assert "training.nonfinite=skip" in error


def test_what_cannot_be_left_out_whole_stops_the_run(folder: Path) -> None:
    error = error_of(folder, "weight-skip")
    assert re.match(
        rf"step {BAD_STEP}: the gradient of \S+\.faulty\.component\.bias is NaN or infinite", error
    )
    assert "learned from the step already" in error
    assert steps(folder / "weight-skip") == list(range(1, BAD_STEP))


def test_steps_are_not_left_out_for_ever() -> None:
    policy, fault = (
        FaultPolicy(skip=True, split="train"),
        Fault("the loss is NaN or infinite", 64, undone=True),
    )
    for step in [*range(1, 10), *range(11, 20)]:
        assert f"step {step}: the loss" in policy.take(step, fault)
    with pytest.raises(UserError, match=r"step 20: .* 10 steps in a row are too many"):
        policy.take(20, fault)


def test_parameters_that_an_update_made_infinite_get_into_no_checkpoint(folder: Path) -> None:
    error = error_of(folder, "overflow-skip")
    assert re.match(r"step 1: \S+ is NaN or infinite, so no checkpoint is written", error)
    assert not steps(folder / "overflow-skip")
