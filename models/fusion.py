"""Fusion: the output embeddings of the components become one prediction (CETNet, arXiv 2411.13700)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cetnet.models.config import FusionConfig
from cetnet.models.layers.mlp import BilinearFusion, LogitLinear, linear, mlp, without_autocast


def binary_entropy(logit: Tensor) -> Tensor:
    """Entropy in nats of Bernoulli(sigmoid(logit)), any shape: softplus(z) - z sigmoid(z).

    Even in z, hence computed at -|z|, where the two terms do not cancel.
    """
    logit = -logit.abs()
    return nn.functional.softplus(logit) - logit * logit.sigmoid()


def confidence_weights(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Weights of the components, `[B, N]` -> `[B, N]`: softmax over N of the negative entropy, per row.

    The entropy is at most ln 2, so at temperature 1 each weight stays in [1 / (2N - 1), 2 / (N + 1)]: no
    component is ever switched off. float32, or float64 if the logits are.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (-binary_entropy(logits) / temperature).softmax(dim=1)


def make_fusion(dims: Sequence[int], config: FusionConfig) -> nn.Module:
    """What makes one logit `[B]` of the components' embeddings and logits; see `Average` and `Fusion`."""
    return Average(config) if config.averages else Fusion(dims, config)


class Average(nn.Module):
    """The mean of the components' logits, or by their confidence: nothing is learned here.

    With `stop_gradient` the logits are constants for autograd, so that nothing of the fused loss reaches the
    components: they learn by losses of their own alone, as models that are trained apart and averaged afterwards.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.by_confidence = config.mode == "confidence_average"
        self.stop_gradient, self.temperature = config.stop_gradient, config.temperature

    def forward(self, _: Sequence[Tensor], logits: Tensor) -> Tensor:
        """N embeddings, which are not read, and the components' logits `[B, N]` -> the fused logit `[B]`."""
        logits = logits.detach() if self.stop_gradient else logits
        if self.by_confidence:
            return (confidence_weights(logits, self.temperature) * logits).sum(1)
        return logits.mean(1)


class Fusion(nn.Module):
    """A head on the joined output embeddings of N components: the fused logit.

    | mode                | what is joined                                                              |
    |---------------------|-----------------------------------------------------------------------------|
    | `confidence_concat` | concat of w_m e_m, w by `confidence_weights` (the paper's default)          |
    | `confidence_sum`    | sum of w_m e_m                                                              |
    | `gate_concat`       | concat of g_m e_m, g = softmax(Linear([e_1 .. e_N])), learned               |
    | `gate_sum`          | sum of g_m e_m                                                              |
    | `concat`            | concat of e_m, unweighted                                                   |
    | `mean`              | mean of e_m, unweighted                                                     |

    Sums and means need equal sizes: where they differ, a Linear per component maps to the largest. With
    `stop_gradient`, confidence weights are constants for autograd, so that the fused loss reaches components
    only through their embeddings and none is rewarded for being over-confident.

    Args:
        dims: `output_dim` of each component.
        config: mode, stop_gradient, temperature, head.

    Raises:
        ValueError: head `bilinear` cannot split the joined embedding into two halves of `num_heads` parts.
    """

    def __init__(self, dims: Sequence[int], config: FusionConfig) -> None:
        super().__init__()
        weighting, _, joining = config.mode.rpartition("_")
        self.weighting = weighting or None
        self.concatenated = joining == "concat"
        self.stop_gradient, self.temperature = config.stop_gradient, config.temperature
        project = not self.concatenated and len(set(dims)) > 1
        self.projections = nn.ModuleList(linear(dim, max(dims)) if project else nn.Identity() for dim in dims)
        self.gate = linear(sum(dims), len(dims)) if weighting == "gate" else None
        width = sum(dims) if self.concatenated else max(dims)
        if config.head == "bilinear":
            if width % (2 * config.num_heads):
                raise ValueError(f"fusion: {width} numbers cannot be halved into {config.num_heads} heads")
            self.hidden: nn.Module = nn.Identity()
            self.readout: nn.Module = BilinearFusion(width // 2, width // 2, config.num_heads)
        else:
            self.hidden = mlp(width, config.hidden_units, "relu", config.dropout, config.batch_norm)
            self.readout = LogitLinear((width, *config.hidden_units)[-1])

    def forward(self, embeddings: Sequence[Tensor], logits: Tensor) -> Tensor:
        """N embeddings `[B, D_m]` and the components' logits `[B, N]` -> the fused logit `[B]`.

        Computes in float32 even under autocast.
        """
        with without_autocast(logits):
            dtype = torch.promote_types(logits.dtype, torch.float32)
            embeddings = [embedding.to(dtype) for embedding in embeddings]
            weights = self._weights(embeddings, logits)  # [B, N]
            parts = [
                projection(embedding)
                for projection, embedding in zip(self.projections, embeddings, strict=True)
            ]
            if weights is not None:
                parts = [weight * part for weight, part in zip(weights.split(1, dim=1), parts, strict=True)]
            if self.concatenated:
                joined = torch.cat(parts, dim=1)
            else:
                joined = torch.stack(parts).sum(0)
                joined = joined / len(parts) if weights is None else joined
            logit: Tensor = self.readout(self.hidden(joined))
            return logit

    def _weights(self, embeddings: Sequence[Tensor], logits: Tensor) -> Tensor | None:
        if self.gate is not None:
            return (self.gate(torch.cat(list(embeddings), dim=1)) / self.temperature).softmax(dim=1)
        if self.weighting == "confidence":
            return confidence_weights(logits.detach() if self.stop_gradient else logits, self.temperature)
        return None
