"""Collaboration losses: components learn from each other's predictions.

Each takes logits `[B, N]`, N >= 2, one column per component, and returns `[B]`, per row so that the caller can
weight rows; in float32, or float64 if the logits are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cetnet.models.config import Collaboration, Distillation, MutualLearning, SymmetricKL


def collaboration_loss(config: Collaboration, logits: Tensor, fused: Tensor) -> Tensor | None:
    """The configured loss, weighted; None if there is none.

    Args:
        config: which one.
        logits: `[B, N]`, the components'.
        fused: `[B]`, the fused logit.
    """
    if isinstance(config, SymmetricKL) and config.weight:
        return config.weight * symmetric_kl(logits, config.detach)
    if isinstance(config, MutualLearning) and config.weight:
        return config.weight * mutual_learning(logits)
    if isinstance(config, Distillation) and config.weight:
        teacher = fused if config.teacher == "fused" else logits.mean(1)
        return config.weight * distillation(logits, teacher, config.temperature)
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


def _exact(logits: Tensor) -> Tensor:
    # In bfloat16 the difference of two close probabilities would be mostly rounding.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
