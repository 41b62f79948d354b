import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cetnet.models.config import FusionConfig
from cetnet.models.fusion import Average, Fusion, binary_entropy, confidence_weights, make_fusion


def test_binary_entropy() -> None:
    p = torch.tensor([0.001, 0.2, 0.5, 0.9], dtype=torch.float64)
    expected = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(binary_entropy(p.logit()), expected)
    assert binary_entropy(torch.zeros(())).item() == pytest.approx(math.log(2))
    extreme = binary_entropy(torch.tensor([-1e4, -30.0, 30.0, 1e4]))
    torch.testing.assert_close(extreme[1:3], torch.full((2,), 31 * math.exp(-30)))
    assert not extreme[[0, 3]].any()


def test_entropy_gradient() -> None:
    z = torch.tensor([-20.0, -3.0, 0.0, 0.5, 20.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(binary_entropy, z)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_weights_sum_to_one_and_keep_their_bounds(n: int) -> None:
    torch.manual_seed(0)
    logits = torch.cat([torch.randn(1000, n) * 10, torch.zeros(1, n), torch.full((1, n), 1e4)])
    only_sure, only_unsure = torch.zeros(1, n), torch.full((1, n), 100.0)
    only_sure[0, 0], only_unsure[0, 0] = 100.0, 0.0
    weights = confidence_weights(torch.cat([logits, only_sure, only_unsure]))
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    low, high = 1 / (2 * n - 1), 2 / (n + 1)
    assert weights.min().item() == pytest.approx(low)
    assert weights.max().item() == pytest.approx(high)
    assert weights[-2, 0].item() == pytest.approx(high)
    assert weights[-1, 0].item() == pytest.approx(low)


def test_the_surer_component_weighs_more() -> None:
    weights = confidence_weights(torch.tensor([[3.0, 0.5, -6.0]]))
    assert weights[0].argsort().tolist() == [1, 0, 2]


def fused_reference(fusion: Fusion, mode: str, embeddings: list[Tensor], logits: Tensor) -> Tensor:
    rows = []
    for row in range(len(logits)):
        p = logits[row].sigmoid()
        confidence = [(q * math.log(q) + (1 - q) * math.log(1 - q)) / fusion.temperature for q in p.tolist()]
        total = sum(math.exp(c) for c in confidence)
        w = [math.exp(c) / total for c in confidence]
        e = [projection(x[row]) for projection, x in zip(fusion.projections, embeddings, strict=True)]
        if mode.startswith("gate"):
            scores = [
                torch.cat([x[row] for x in embeddings]).dot(weight).item() / fusion.temperature
                for weight in fusion.gate.weight
            ]
            w = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        if mode.startswith(("confidence", "gate")):
            e = [w[m] * e[m] for m in range(len(e))]
        joined = torch.cat(e) if mode.endswith("concat") else torch.stack(e).sum(0)
        if mode == "mean":
            joined = joined / len(e)
        rows.append(fusion.readout.weight[0].dot(joined) + fusion.readout.bias[0])
    return torch.stack(rows)


MODES = ["confidence_concat", "confidence_sum", "gate_concat", "gate_sum", "concat", "mean"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("dims", "temperature"), [((4, 4), 1), ((5, 3, 2), 1), ((4, 4), 0.2)])
def test_modes(mode: str, dims: tuple[int, ...], temperature: float) -> None:
    torch.manual_seed(0)
    fusion = Fusion(dims, FusionConfig(mode=mode, temperature=temperature))  # type: ignore[arg-type]
    assert fusion.temperature == temperature
    torch.nn.init.constant_(fusion.readout.bias, 0.3)
    for batch_size in (1, 6):
        embeddings, logits = (
            [torch.randn(batch_size, dim) for dim in dims],
            torch.randn(batch_size, len(dims)),
        )
        fused = fusion(embeddings, logits)
        assert fused.shape == (batch_size,)
        torch.testing.assert_close(fused, fused_reference(fusion, mode, embeddings, logits))
    projects = len(set(dims)) > 1 and not mode.endswith("concat")
    assert bool(list(fusion.projections.parameters())) == projects


@pytest.mark.parametrize("mode", ["confidence_concat", "confidence_sum"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_fused_loss_moves_the_logits_only_without_stop_gradient(mode: str, stop_gradient: bool) -> None:
    torch.manual_seed(0)
    fusion = Fusion([4, 4], FusionConfig(mode=mode, stop_gradient=stop_gradient))  # type: ignore[arg-type]
    embeddings = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
    heads = [torch.nn.Linear(4, 1) for _ in range(2)]
    logits = torch.cat([head(e.detach()) for head, e in zip(heads, embeddings, strict=True)], dim=1)
    logits.retain_grad()
    fusion(embeddings, logits).square().sum().backward()
    assert all(e.grad is not None and e.grad.any() for e in embeddings)
    if stop_gradient:
        assert logits.grad is None
        assert all(head.weight.grad is None for head in heads)
    else:
        assert logits.grad is not None
        assert logits.grad.all()


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode: str) -> None:
    torch.manual_seed(0)
    fusion = Fusion([3, 2, 3], FusionConfig(mode=mode, stop_gradient=False)).double()  # type: ignore[arg-type]
    leaves = [torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (3, 2, 3, 3)]
    used = leaves if mode.startswith("confidence") else [*leaves[:3], leaves[3].detach()]
    assert torch.autograd.gradcheck(lambda *x: fusion(x[:3], x[3]), tuple(used))


@pytest.mark.parametrize("mode", ["average", "confidence_average"])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_averages_of_logits(mode: str, temperature: float) -> None:
    config = FusionConfig(mode=mode, temperature=temperature)  # type: ignore[arg-type]
    fusion = make_fusion([4, 2, 3], config)
    assert not list(fusion.parameters())
    logits = torch.randn(6, 3)
    fused = fusion([torch.randn(6, n) for n in (4, 2, 3)], logits)
    for row, values in enumerate(logits.tolist()):
        w = [1.0] * 3
        if mode == "confidence_average":
            p = [1 / (1 + math.exp(-z)) for z in values]
            w = [math.exp((q * math.log(q) + (1 - q) * math.log(1 - q)) / temperature) for q in p]
        expected = sum(a * z for a, z in zip(w, values, strict=True)) / sum(w)
        assert fused[row].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("mode", ["average", "confidence_average"])
def test_an_average_is_measured_only_unless_gradients_may_pass(mode: str) -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert not Average(FusionConfig(mode=mode))([], logits).requires_grad  # type: ignore[arg-type]
    learned = Average(FusionConfig(mode=mode, stop_gradient=False))  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda z: learned([], z), logits)


@pytest.mark.parametrize("setting", [{"hidden_units": (4,)}, {"head": "bilinear"}])
def test_an_average_has_no_head(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="mode average is a mean of logits, without a head; leave head"):
        FusionConfig(mode="average", **setting)


def test_swapping_components_swaps_their_parts() -> None:
    torch.manual_seed(0)
    fusion, swapped = Fusion([4, 4], FusionConfig()), Fusion([4, 4], FusionConfig())
    weight = fusion.readout.weight.detach()
    swapped.readout.weight.data = torch.cat([weight[:, 4:], weight[:, :4]], dim=1)
    embeddings, logits = [torch.randn(6, 4) for _ in range(2)], torch.randn(6, 2)
    torch.testing.assert_close(swapped(embeddings[::-1], logits.flip(1)), fusion(embeddings, logits))


def test_float32_under_autocast() -> None:
    torch.manual_seed(0)
    fusion = Fusion([8, 5], FusionConfig(mode="confidence_sum"))
    embeddings = [torch.randn(6, 8).bfloat16(), torch.randn(6, 5).bfloat16()]
    logits = torch.randn(6, 2)
    exact = fusion([e.float() for e in embeddings], logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fusion(embeddings, logits), exact)
    assert confidence_weights(logits.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.1, 3.0])
def test_temperature(temperature: float) -> None:
    logits = torch.tensor([[3.0, 0.5, -6.0]])
    confidence = -binary_entropy(logits)[0] / temperature
    torch.testing.assert_close(
        confidence_weights(logits, temperature)[0], confidence.exp() / confidence.exp().sum()
    )


def test_hidden_layers_of_the_head() -> None:
    torch.manual_seed(0)
    fusion = Fusion([4, 4], FusionConfig(mode="mean", hidden_units=(3,)))
    embeddings = [torch.randn(6, 4) for _ in range(2)]
    first = fusion.hidden[0]  # type: ignore[index]
    hidden = ((embeddings[0] + embeddings[1]) / 2 @ first.weight.T + first.bias).relu()
    expected = hidden @ fusion.readout.weight[0] + fusion.readout.bias
    torch.testing.assert_close(fusion(embeddings, torch.randn(6, 2)), expected)


def test_bilinear_head_joins_the_means_of_two_streams() -> None:
    torch.manual_seed(0)
    fusion = Fusion([8, 8], FusionConfig(mode="mean", head="bilinear", num_heads=2))
    embeddings = [torch.randn(5, 8) for _ in range(2)]
    x, y = ((embeddings[0] + embeddings[1]) / 2).chunk(2, dim=1)
    head = fusion.readout
    expected = []
    for row in range(5):
        logit = head.x.weight[0] @ x[row] + head.x.bias[0] + head.y.weight[0] @ y[row] + head.y.bias[0]
        for h in range(2):
            part = slice(2 * h, 2 * h + 2)
            logit = logit + x[row, part] @ head.weight[h] @ y[row, part]
        expected.append(logit)
    torch.testing.assert_close(fusion(embeddings, torch.randn(5, 2)), torch.stack(expected))
    with pytest.raises(ValueError, match="cannot be halved"):
        Fusion([7, 7], FusionConfig(mode="mean", head="bilinear"))
