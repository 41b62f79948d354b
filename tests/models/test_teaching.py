import math
from typing import Any

import pytest
import torch
from torch import nn

from cetnet.models.cetnet import CETNet
from cetnet.models.config import CETNetConfig, Teaching
from cetnet.models.teaching import SoftLabels
from tests.models.test_cetnet import DHEN, SCHEMA, batch


def by_hand(
    weight: float, t: float, logit: float, label: float, teachers: list[float], w: list[float]
) -> float:
    """Of one output and row: the weighted sum of what is lost to each teacher."""

    def bce(z: float, target: float) -> float:
        p = 1 / (1 + math.exp(-z))
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    soft = sum(a * bce(logit / t, 1 / (1 + math.exp(-z / t))) for a, z in zip(w, teachers, strict=True))
    return (1 - weight) * bce(logit, label) + weight * t * t * soft


@pytest.mark.parametrize("setting", [{}, {"weight": 0.8, "temperature": 3}, {"weight": 0}, {"weight": 1}])
@pytest.mark.parametrize("weighting", ["mean", "adaptive"])
def test_the_loss_by_hand(setting: dict[str, float], weighting: Any) -> None:
    torch.manual_seed(0)
    config = Teaching(weighting=weighting, **setting)  # type: ignore[arg-type]
    soft_labels = SoftLabels(config, 3)
    label, logits, teachers = torch.tensor([1.0, 0, 1, 0]), torch.randn(2, 4), torch.randn(4, 3)
    bce = nn.functional.binary_cross_entropy_with_logits(logits, label.expand(2, 4), reduction="none")
    weights = torch.full((4, 3), 1 / 3)
    if soft_labels.gate is not None:
        torch.testing.assert_close(soft_labels.gate(teachers).softmax(1), weights)
        nn.init.normal_(soft_labels.gate.weight)
        scores = (teachers @ soft_labels.gate.weight.T + soft_labels.gate.bias).exp()
        weights = scores / scores.sum(1, keepdim=True)
    found, of_gate = soft_labels(logits, bce, label, teachers)
    for output in range(2):
        for row in range(4):
            expected = by_hand(
                config.weight,
                config.temperature,
                logits[output, row].item(),
                label[row].item(),
                teachers[row].tolist(),
                weights[row].tolist(),
            )
            assert found[output, row].item() == pytest.approx(expected, rel=1e-5)
    if weighting == "mean":
        assert of_gate is None
    else:
        mixed = (weights * teachers).sum(1).sigmoid()
        expected_of_gate = -(label * mixed.log() + (1 - label) * (1 - mixed).log())
        torch.testing.assert_close(of_gate, expected_of_gate)


def test_the_gate_learns_from_the_labels_alone() -> None:
    torch.manual_seed(0)
    soft_labels = SoftLabels(Teaching(weighting="adaptive"), 2)
    assert soft_labels.gate is not None
    truth = torch.randn(512, generator=torch.Generator().manual_seed(1)) * 2
    label = (truth.sigmoid() > torch.rand(512)).float()
    teachers = torch.stack([truth, torch.randn(512)], dim=1)  # one knows, one guesses
    logits = torch.zeros(1, 512, requires_grad=True)
    for _ in range(200):
        loss, of_gate = soft_labels(logits, torch.zeros(1, 512), label, teachers)
        assert of_gate is not None
        loss.sum().backward()  # the student's, of which the gate learns nothing
        assert soft_labels.gate.weight.grad is None
        of_gate.mean().backward()
        with torch.no_grad():
            for parameter in soft_labels.parameters():
                parameter -= parameter.grad
                parameter.grad = None
    weights = soft_labels.gate(teachers).softmax(1)
    assert weights[:, 0].mean() > 0.8


def student(components: dict[str, Any], soft_labels: SoftLabels | None) -> CETNet:
    torch.manual_seed(0)
    return CETNet(SCHEMA, CETNetConfig.model_validate({"components": components}), soft_labels=soft_labels)


@pytest.mark.parametrize("components", [{"a": DHEN}, {"a": DHEN, "b": DHEN}])
@pytest.mark.parametrize("weighting", ["mean", "adaptive"])
def test_a_student_starts_as_any_model_and_every_output_learns_of_the_teachers(
    components: dict[str, Any], weighting: Any
) -> None:
    soft_labels = SoftLabels(Teaching(weight=0.3, weighting=weighting), 2)
    taught, alone = student(components, soft_labels), student(components, None)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(taught.get_parameter(name), parameter)
    teachers = torch.randn(3, 2)
    loss, predictions = taught(batch()._replace(teachers=teachers))
    plain, expected = alone(batch())
    torch.testing.assert_close(predictions.logits, expected.logits)
    change = 0.0
    for logits in predictions.logits:
        for row in range(3):
            label, weights = batch().label[row].item(), [0.5, 0.5]
            arguments = (logits[row].item(), label, teachers[row].tolist(), weights)
            change += (by_hand(0.3, 1, *arguments) - by_hand(0, 1, *arguments)) / 3
    if weighting == "adaptive":
        mean = teachers.mean(1).sigmoid()
        change -= (batch().label * mean.log() + (1 - batch().label) * (1 - mean).log()).mean().item()
    assert loss.item() - plain.item() == pytest.approx(change, abs=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in taught.objective.parameters())
    taught.eval()
    torch.testing.assert_close(taught(batch())[0], plain)  # scoring needs no teachers
