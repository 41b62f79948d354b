"""Personalised feed-forward network of InterFormer (arXiv 2411.09852 v4, eq. 8 and app. A.2.2)."""

from typing import Literal

import torch
from torch import Tensor, nn

from cetnet.models.layers.mlp import Activation, linear, mlp

PFFNKind = Literal["dot", "mixture", "hypernetwork"]


class PFFN(nn.Module):
    """Every event times a matrix made from the summary X_sum: `[B, n_sum, d]`, `[B, L, d]` -> `[B, L, d]`.

    The matrix, d x d per sample, is never formed: its two thin factors are applied one after the other.

    Args:
        kind: `dot`: W^T X_sum, dot products of events and summary tokens, as the paper reads its own equation.
            `mixture`: X_sum^T W, mixtures of the summary tokens, the equation to the letter. `hypernetwork`: an MLP
            on X_sum makes both factors.
        num_summary_tokens: n_sum, the rank of `dot` and `mixture`.
        embedding_dim: d.
        rank: columns of the factors of `hypernetwork`.
        activation: of the MLP of `hypernetwork`.
    """

    def __init__(
        self, kind: PFFNKind, num_summary_tokens: int, embedding_dim: int, rank: int, activation: Activation
    ) -> None:
        super().__init__()
        self.kind = kind
        size = num_summary_tokens * embedding_dim
        self.weight: nn.Parameter | None = None
        self.mlp: nn.Sequential | None = None
        if kind == "hypernetwork":
            # Numbers near 1, and a scale that the factors share, give unit variance out of unit variance in.
            self.scale = (rank * embedding_dim) ** -0.25
            self.mlp = mlp(size, (size,), activation)
            last = linear(size, 2 * rank * embedding_dim)
            nn.init.kaiming_normal_(last.weight)
            self.mlp.append(last)
            self.mlp.append(nn.Unflatten(1, (2, rank, embedding_dim)))
        else:
            # Unit variance out of unit variance in; xavier_normal would give 2.7 times that.
            self.weight = nn.Parameter(torch.randn(num_summary_tokens, embedding_dim) * size**-0.5)

    def forward(self, token_summary: Tensor, sequence: Tensor) -> Tensor:
        """`[B, n_sum, d]`, `[B, L, d]` -> `[B, L, d]`."""
        if self.mlp is not None:
            first, second = (self.scale * self.mlp(token_summary.flatten(1))).unbind(1)
            return (sequence @ first.transpose(1, 2)) @ second
        assert self.weight is not None
        if self.kind == "mixture":
            return (sequence @ self.weight.T) @ token_summary
        return (sequence @ token_summary.transpose(1, 2)) @ self.weight
