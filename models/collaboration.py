"""Collaboration losses: components learn from each other's predictions.

Each takes logits `[B, N]`, N >= 2, one column per component, and returns `[B]`, per row so that the caller can
weight rows; in float32, or float64 if the logits are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cetnet.models.config import Codistillation, Collaboration, Distillation, MutualLearning, SymmetricKL


def collaboration_loss(
    config: Collaboration, logits: Tensor, fused: Tensor, stale: Tensor | None = None
) -> Tensor | None:
    """The configured loss, weighted; None if there is none.

    Args:
        config: which one.
        logits: `[B, N]`, the components'.
        fused: `[B]`, the fused logit.
        stale: `[B, N]`, what stale copies of the components say, for codistillation; None before it begins.
    """
    if isinstance(config, SymmetricKL) and config.weight:
        return config.weight * symmetric_kl(logits, config.detach)
    if isinstance(config, MutualLearning) and config.weight:
        return config.weight * mutual_learning(logits)
    if isinstance(config, Distillation) and config.weight:
        teacher = fused if config.teacher == "fused" else logits.mean(1)
        return config.weight * distillation(logits, teacher, config.temperature)
    if isinstance(config, Codistillation) and config.weight and stale is not None:
        return config.weight * codistillation(logits, stale, config.temperature)
    return None


def symmetric_kl(logits: Tensor, detach: bool = False) -> Tensor:
    """KL(p_a || p_b) + KL(p_b || p_a) of Bernoulli predictions, averaged over the pairs of components.

    CETNet, arXiv 2411.13700, section 3.4. For two Bernoullis the sum is exactly (p_a - p_b)(z_a - z_b): no
    logarithm, nothing to clamp.

    Args:
        logits: `[B, N]`.
        detach: Each KL trains only one side towards the other, held constant. The value stays; the gradient by
            z_a loses its term p_a (1 - p_a)(z_a - z_b).
    """
    assert logits.shape[1] >= 2, "a component cannot collaborate with itself"
    logits = _exact(logits)
    first, second = torch.triu_indices(logits.shape[1], logits.shape[1], offset=1, device=logits.device)
    probabilities = logits.sigmoid()
    difference = probabilities[:, first] - probabilities[:, second]  # [B, pairs]
    if detach:
        difference = difference.detach()
    return (difference * (logits[:, first] - logits[:, second])).mean(1)


def mutual_learning(logits: Tensor) -> Tensor:
    """Sum over components k of the mean over its peers l of KL(p_l || p_k), the peers constant, `[B]`.

    Deep Mutual Learning, arXiv 1706.00384, eq. 8. Every pair occurs in both directions, each with weight
    1 / (N - 1): the symmetric KL's mean over the N (N - 1) / 2 pairs, times N / 2.
    """
    return logits.shape[1] / 2 * symmetric_kl(logits, detach=True)


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the sum over components of KL(teacher || component), logits divided by T, the teacher constant.

    ONE, arXiv 1806.04606, eq. 7 and 8; KDCL, arXiv 2006.07114, eq. 5.

    Args:
        logits: `[B, N]`.
        teacher: `[B]`, a logit.
        temperature: T; above 1 it softens both sides.
    """
    student = _exact(logits) / temperature
    target = (_exact(teacher).detach() / temperature).unsqueeze(1)
    divergence = target.sigmoid() * (target - student) + F.softplus(student) - F.softplus(target)
    return temperature**2 * divergence.sum(1)


def codistillation(logits: Tensor, stale: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the sum over components of the cross entropy with the mean probability of their peers' stale copies.

    arXiv 1804.03235, algorithm 1. Logits are divided by T; `[B, N]`, both.
    """
    student, peers = _exact(logits) / temperature, (_exact(stale).detach() / temperature).sigmoid()
    target = (peers.sum(1, keepdim=True) - peers) / (logits.shape[1] - 1)
    return temperature**2 * F.binary_cross_entropy_with_logits(student, target, reduction="none").sum(1)


class StalePredictions(nn.Module):
    """What stale copies of N components say of the rows of the steps up to `until`: in checkpoints, for who resumes.

    Attributes:
        row: `[rows]` int64, row numbers; -1 for none.
        logits: `[rows, N]` float32.
        until: scalar int64, a step.
    """

    row: Tensor
    logits: Tensor
    until: Tensor

    def __init__(self, rows: int, components: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.register_buffer("row", torch.full((rows,), -1, device=device))
        self.register_buffer("logits", torch.zeros(rows, components, device=device))
        self.register_buffer("until", torch.zeros((), dtype=torch.int64, device=device))

    def keep(self, row: Tensor, logits: Tensor, until: int) -> None:
        """Take in what is said of rows `[n]`, n at most `rows`; what was there is forgotten."""
        self.row.fill_(-1)[: len(row)] = row
        self.logits.zero_()[: len(row)] = logits
        self.until.fill_(until)

    def of(self, row: Tensor) -> Tensor:
        """Of rows `[B]`, on the CPU: `[B, N]`; of -1 any number."""
        known, order = self.row.cpu().sort()
        at = torch.searchsorted(known, row).clamp(max=len(known) - 1)
        assert torch.equal(known[at][row >= 0], row[row >= 0]), "a row that nothing was said of"
        return self.logits.cpu()[order[at]]


def _exact(logits: Tensor) -> Tensor:
    # In bfloat16 the difference of two close probabilities would be mostly rounding.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
