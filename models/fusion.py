"""The fusion head of CETNet (arXiv 2411.13700): components are trusted by their confidence."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.config import FusionMode
from models.layers.mlp import LogitLinear, linear


def binary_entropy(logit: Tensor) -> Tensor:
    """Entropy in nats of Bernoulli(sigmoid(logit)), any shape: softplus(z) - z sigmoid(z).

    Even in z, hence computed at -|z|, where the two terms do not cancel.
    """
    logit = -logit.abs()
    return nn.functional.softplus(logit) - logit * logit.sigmoid()


def confidence_weights(logits: Tensor) -> Tensor:
    """Weights of the components, `[B, N]` -> `[B, N]`: softmax over N of the negative entropy, per row.

    The entropy is at most ln 2, so each weight stays in [1 / (2N - 1), 2 / (N + 1)]: no component is ever
    switched off. float32, or float64 if the logits are.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (-binary_entropy(logits)).softmax(dim=1)


class Fusion(nn.Module):
    """One affine map of the joined output embeddings of N components: the fused logit.

    | mode                | what is joined                                           |
    |---------------------|----------------------------------------------------------|
    | `confidence_concat` | concat of w_m e_m (the paper's default)                  |
    | `confidence_sum`    | sum of w_m e_m                                           |
    | `concat`            | concat of e_m, unweighted                                |
    | `mean`              | mean of e_m, unweighted                                  |

    Sums and means need equal sizes: where they differ, a Linear per component maps to the largest.

    Args:
        dims: `output_dim` of each component.
        mode: As above.
        stop_gradient: The weights are constants for autograd, so that the fused loss reaches components only
            through their embeddings and none is rewarded for being over-confident.
    """

    def __init__(
        self, dims: Sequence[int], mode: FusionMode = "confidence_concat", stop_gradient: bool = True
    ) -> None:
        super().__init__()
        self.weighted = mode.startswith("confidence")
        self.concatenated = mode.endswith("concat")
        self.stop_gradient = stop_gradient
        project = not self.concatenated and len(set(dims)) > 1
        self.projections = nn.ModuleList(linear(dim, max(dims)) if project else nn.Identity() for dim in dims)
        self.readout = LogitLinear(sum(dims) if self.concatenated else max(dims))

    def forward(self, embeddings: Sequence[Tensor], logits: Tensor) -> Tensor:
        """N embeddings `[B, D_m]` and the components' logits `[B, N]` -> the fused logit `[B]`.

        Computes in float32 even under autocast.
        """
        with torch.autocast(logits.device.type, enabled=False):
            dtype = self.readout.weight.dtype
            parts = [
                projection(embedding.to(dtype))
                for projection, embedding in zip(self.projections, embeddings, strict=True)
            ]
            if self.weighted:
                weights = confidence_weights(logits.detach() if self.stop_gradient else logits)  # [B, N]
                parts = [weight * part for weight, part in zip(weights.split(1, dim=1), parts, strict=True)]
            if self.concatenated:
                return self.readout(torch.cat(parts, dim=1))
            joined = torch.stack(parts).sum(0)
            return self.readout(joined if self.weighted else joined / len(parts))
