import itertools

import pytest
import torch
from torch import Tensor

from models.collaboration import symmetric_kl


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
