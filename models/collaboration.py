"""The collaboration loss of CETNet (arXiv 2411.13700): components learn from each other's predictions."""

import torch
from torch import Tensor


def symmetric_kl(logits: Tensor, detach: bool = False) -> Tensor:
    """KL(p_a || p_b) + KL(p_b || p_a) of Bernoulli predictions, averaged over the pairs of components.

    For two Bernoullis the sum is exactly (p_a - p_b)(z_a - z_b): no logarithm, nothing to clamp.

    Args:
        logits: `[B, N]`, N >= 2, one column per component.
        detach: Each KL trains only one side towards the other, held constant (deep mutual learning, arXiv
            1706.00384). The value stays; the gradient by z_a loses its term p_a (1 - p_a)(z_a - z_b).

    Returns:
        `[B]`, per row so that the caller can weight rows; float32, or float64 if the logits are.
    """
    assert logits.shape[1] >= 2, "a component cannot collaborate with itself"
    # In bfloat16 the difference of two close probabilities would be mostly rounding.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    first, second = torch.triu_indices(logits.shape[1], logits.shape[1], offset=1, device=logits.device)
    probabilities = logits.sigmoid()
    difference = probabilities[:, first] - probabilities[:, second]  # [B, pairs]
    if detach:
        difference = difference.detach()
    return (difference * (logits[:, first] - logits[:, second])).mean(1)
