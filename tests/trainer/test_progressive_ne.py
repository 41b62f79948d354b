"""Progressive NE against a direct computation, and against TorchRec's own metric."""

import json
import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.metrics.metrics_config import DefaultTaskInfo
from torchrec.metrics.ne import NEMetric
from torchrec.metrics.rec_metric import RecComputeMode

from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.progressive_ne import ProgressiveNE

OUTPUTS = ["fused", "dhen"]
CPU = torch.device("cpu")


class Step(NamedTuple):
    logits: Tensor
    label: Tensor
    weight: Tensor


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with process_group("cpu"):
        yield


def random_steps(count: int, rows: int, seed: int = 0) -> list[Step]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Step(
            2 * torch.randn(len(OUTPUTS), rows, generator=generator),
            (torch.rand(rows, generator=generator) < 0.3).float(),
            torch.randint(0, 4, (rows,), generator=generator) / 3,
        )
        for _ in range(count)
    ]


def progressive(steps: list[Step], window: int) -> ProgressiveNE:
    ne = ProgressiveNE(OUTPUTS, window, CPU)
    for step in steps:
        ne.update(*step)
    return ne


def direct_ne(steps: list[Step], output: int) -> float:
    """Mean cross entropy over the entropy of the base rate, row by row."""
    loss = weights = positives = 0.0
    for step in steps:
        rows = zip(step.logits[output].tolist(), step.label.tolist(), step.weight.tolist(), strict=True)
        for logit, label, weight in rows:
            p = 1 / (1 + math.exp(-logit))
            loss -= weight * math.log(p if label else 1 - p)
            weights += weight
            positives += weight * label
    if not 0 < positives < weights:
        return math.nan
    base = positives / weights
    return loss / weights / -(base * math.log(base) + (1 - base) * math.log(1 - base))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 12), st.integers(1, 8), st.integers(1, 6), st.integers(0, 1000))
def test_lifetime_and_window(count: int, rows: int, window: int, seed: int) -> None:
    steps = random_steps(count, rows, seed)
    values = progressive(steps, window).compute().ne
    assert list(values) == [f"ne/{kind}/{output}" for kind in ("lifetime", "window") for output in OUTPUTS]
    for index, output in enumerate(OUTPUTS):
        for kind, part in (("lifetime", steps), ("window", steps[-window:])):
            expected = direct_ne(part, index)
            assert values[f"ne/{kind}/{output}"] == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_differences_of_sums_are_those_of_the_rows_in_between() -> None:
    steps = random_steps(9, 5)
    before, after = (progressive(steps[:count], 4).compute().sums for count in (3, 9))
    between = steps[3:]
    weight = sum(float(step.weight.double().sum()) for step in between)
    positive = sum(float((step.weight * step.label).double().sum()) for step in between)
    assert after["weight"] - before["weight"] == pytest.approx(weight)
    assert after["positive"] - before["positive"] == pytest.approx(positive)
    base = positive / weight
    entropy = -(base * math.log(base) + (1 - base) * math.log(1 - base))
    for index, output in enumerate(OUTPUTS):
        loss = after["loss"][output] - before["loss"][output]
        assert loss / weight / entropy == pytest.approx(direct_ne(between, index), rel=1e-9)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_single_class_has_no_ne(label: float) -> None:
    steps = [step._replace(label=torch.full_like(step.label, label)) for step in random_steps(9, 37)]
    steps = [step._replace(weight=step.weight + 0.1) for step in steps]
    assert all(map(math.isnan, progressive(steps, 5).compute().ne.values()))


def test_equals_torchrec() -> None:
    rows, window, count = 64, 5, 12
    steps = random_steps(count, rows)
    values = progressive(steps, window).compute().ne
    for index, output in enumerate(OUTPUTS):
        metric = NEMetric(
            world_size=1,
            my_rank=0,
            batch_size=rows,
            tasks=[DefaultTaskInfo],
            compute_mode=RecComputeMode.UNFUSED_TASKS_COMPUTATION,
            window_size=window * rows,
        )
        task = DefaultTaskInfo.name
        for step in steps:
            metric.update(
                predictions={task: step.logits[index].double().sigmoid()},
                labels={task: step.label.double()},
                weights={task: step.weight.double()},
            )
        theirs = {key.split("|")[1]: float(value) for key, value in metric.compute().items()}
        assert values[f"ne/lifetime/{output}"] == pytest.approx(theirs["lifetime_ne"], rel=1e-9)
        assert values[f"ne/window/{output}"] == pytest.approx(theirs["window_ne"], rel=1e-9)


@pytest.mark.parametrize("done", [0, 3, 5, 8])
def test_a_state_of_json_continues_exactly(done: int) -> None:
    steps = random_steps(12, 16)
    state = json.loads(json.dumps(progressive(steps[:done], 5).state_dict()))
    resumed = ProgressiveNE(OUTPUTS, 5, CPU)
    resumed.load_state_dict(state)
    for step in steps[done:]:
        resumed.update(*step)
    assert resumed.compute() == progressive(steps, 5).compute()
    assert resumed.state_dict() == progressive(steps, 5).state_dict()


def test_padding_and_large_logits() -> None:
    step = Step(torch.tensor([[90.0, -90.0], [0.0, 50.0]]), torch.tensor([0.0, 1.0]), torch.ones(2))
    padded = Step(*(F.pad(tensor, (0, 3)) for tensor in step))
    values = progressive([padded], 1).compute().ne
    assert values["ne/window/fused"] == pytest.approx(90 / math.log(2))
    assert values == progressive([step], 1).compute().ne
