import itertools

import pytest
import torch
from torch import Tensor

from cetnet.models.collaboration import (
    StalePredictions,
    codistillation,
    collaboration_loss,
    distillation,
    mutual_learning,
    symmetric_kl,
)
from cetnet.models.config import (
    Codistillation,
    Collaboration,
    Distillation,
    FusionConfig,
    MutualLearning,
    NoCollaboration,
    SymmetricKL,
)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("detach", [True, False])
def test_value_is_the_mean_over_pairs_of_both_directions(n: int, detach: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, n, dtype=torch.float64) * 2
    p = logits.sigmoid()
    pairs = list(itertools.combinations(range(n), 2))
    expected = sum(kl(p[:, a], p[:, b]) + kl(p[:, b], p[:, a]) for a, b in pairs) / len(pairs)
    torch.testing.assert_close(symmetric_kl(logits, detach), expected)


@pytest.mark.parametrize("n", [2, 4])
def test_detached_gradient_is_deep_mutual_learning(n: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, n, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(symmetric_kl(logits, detach=True).sum(), logits)
    p, target = logits.sigmoid(), logits.sigmoid().detach()
    pairs = list(itertools.combinations(range(n), 2))
    loss = sum(kl(target[:, b], p[:, a]) + kl(target[:, a], p[:, b]) for a, b in pairs).sum() / len(pairs)
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, expected)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(symmetric_kl, logits)


@pytest.mark.parametrize("detach", [True, False])
def test_equal_components_have_neither_loss_nor_gradient(detach: bool) -> None:
    logits = torch.linspace(-30, 30, 11).unsqueeze(1).expand(-1, 3).clone().requires_grad_()
    loss = symmetric_kl(logits, detach)
    loss.sum().backward()
    assert not loss.any()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_extreme_logits_and_low_precision() -> None:
    logits = torch.tensor([[1e4, -1e4], [80.0, 81.0], [-100.0, 0.0]], requires_grad=True)
    loss = symmetric_kl(logits)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([2e4, 0.0, 50.0]))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert symmetric_kl(torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert (symmetric_kl(torch.randn(1000, 4) * 10) >= 0).all()


@pytest.mark.parametrize("n", [2, 4])
def test_mutual_learning_is_each_students_kl_to_its_constant_peers(n: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, n, dtype=torch.float64, requires_grad=True)
    p, peer = logits.sigmoid(), logits.sigmoid().detach()
    expected = sum(
        kl(peer[:, other], p[:, k]) / (n - 1) for k in range(n) for other in range(n) if other != k
    )
    loss = mutual_learning(logits)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_kl_from_the_constant_teacher_to_each_component(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(20, dtype=torch.float64, requires_grad=True)
    target, student = (teacher / temperature).sigmoid(), (logits / temperature).sigmoid()
    expected = sum(temperature**2 * kl(target, student[:, k]) for k in range(3))
    loss = distillation(logits, teacher, temperature)
    torch.testing.assert_close(loss, expected)
    gradient, to_teacher = torch.autograd.grad(loss.sum(), (logits, teacher), allow_unused=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])
    assert to_teacher is None
    assert torch.autograd.gradcheck(lambda z: distillation(z, teacher.detach(), temperature), logits)


def test_the_mean_teacher_is_constant_too() -> None:
    logits = torch.tensor([[2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    config = Distillation(kind="distillation", teacher="mean", weight=0.5)
    loss = collaboration_loss(config, logits, torch.zeros(1, dtype=torch.float64))
    assert loss is not None
    target = torch.tensor(0.5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient[0], 0.5 * (logits[0].sigmoid() - target.sigmoid()))


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_codistillation_is_towards_the_mean_of_the_peers_stale_copies(n: int, temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, n, dtype=torch.float64, requires_grad=True)
    stale = torch.randn(20, n, dtype=torch.float64, requires_grad=True)
    p, q = (logits / temperature).sigmoid(), (stale.detach() / temperature).sigmoid()
    expected = torch.zeros(20, dtype=torch.float64)
    for k in range(n):
        target = torch.stack([q[:, peer] for peer in range(n) if peer != k]).mean(0)
        expected = expected - temperature**2 * (target * p[:, k].log() + (1 - target) * (1 - p[:, k]).log())
    config = Codistillation(kind="codistillation", weight=0.5, temperature=temperature)
    loss = collaboration_loss(config, logits, torch.zeros(20), stale)
    assert loss is not None
    torch.testing.assert_close(loss, 0.5 * expected)
    gradient, to_stale = torch.autograd.grad(loss.sum(), (logits, stale), allow_unused=True)
    torch.testing.assert_close(gradient, 0.5 * torch.autograd.grad(expected.sum(), logits)[0])
    assert to_stale is None
    assert codistillation(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])).item() == 2e4
    assert collaboration_loss(config, logits, torch.zeros(20)) is None  # before the first exchange


def test_stale_predictions_are_found_by_row() -> None:
    stale = StalePredictions(6, 2)
    for rows in ([5, -1, 3, 9], [7, 5, -1, -1, 2]):  # the second replaces the first
        logits = torch.randn(len(rows), 2)
        stale.keep(torch.tensor(rows), logits, until=8)
        wanted = [row for row in reversed(rows) if row >= 0]
        found = stale.of(torch.tensor([-1, *wanted]))
        torch.testing.assert_close(found[1:], torch.stack([logits[rows.index(row)] for row in wanted]))
    with pytest.raises(AssertionError, match="a row that nothing was said of"):
        stale.of(torch.tensor([3]))
    assert int(stale.until) == 8


@pytest.mark.parametrize(
    "config",
    [NoCollaboration(), SymmetricKL(weight=0), MutualLearning(kind="mutual_learning", weight=0)],
)
def test_nothing_is_computed_for_no_collaboration(config: Collaboration) -> None:
    assert collaboration_loss(config, torch.randn(3, 2), torch.randn(3)) is None


@pytest.mark.parametrize(
    "config",
    [
        SymmetricKL(weight=0.3),
        SymmetricKL(weight=0.3, detach=True),
        MutualLearning(kind="mutual_learning", weight=0.3),
        Distillation(kind="distillation", weight=0.3, teacher="mean", temperature=2),
    ],
)
def test_symmetric_under_swapping_components(config: Collaboration) -> None:
    logits, fused = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    loss = collaboration_loss(config, logits, fused)
    torch.testing.assert_close(collaboration_loss(config, logits[:, [2, 0, 1]], fused), loss)
    torch.testing.assert_close(
        collaboration_loss(config.model_copy(update={"weight": 0.6}), logits, fused), 2 * loss
    )


@pytest.mark.parametrize("detach", [False, True])
def test_the_setting_detach_reaches_the_loss(detach: bool) -> None:
    logits = torch.tensor([[2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    loss = collaboration_loss(SymmetricKL(weight=1, detach=detach), logits, torch.zeros(1))
    assert loss is not None
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    p = logits.detach().sigmoid()[0]
    expected = p[0] - p[1] + (0 if detach else p[0] * (1 - p[0]) * 3)
    torch.testing.assert_close(gradient[0, 0], expected)


def test_defaults_are_the_papers() -> None:
    assert SymmetricKL() == SymmetricKL(weight=0.5, detach=False)
    assert FusionConfig() == FusionConfig(mode="confidence_concat", stop_gradient=True, temperature=1)
