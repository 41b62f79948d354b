"""Cross Arch of InterFormer (arXiv 2411.09852 v4, section 4.4): each side's summary for the other."""

from typing import Literal

import torch
from torch import Tensor, nn

from cetnet.models.layers.attention import PMA
from cetnet.models.layers.mlp import linear
from cetnet.models.layers.tokens import TokenLinear

Gate = Literal["sigmoid", "identity"]


class Gating(nn.Module):
    """X * sigmoid(Linear(X)), or without the sigmoid, position-wise, `[B, n, d]` -> `[B, n, d]`."""

    def __init__(self, embedding_dim: int, gate: Gate = "sigmoid") -> None:
        super().__init__()
        self.linear = linear(embedding_dim, embedding_dim)
        self.activation = nn.Sigmoid() if gate == "sigmoid" else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n, d]`."""
        return tokens * self.activation(self.linear(tokens))


class TokenSummary(nn.Module):
    """The non-sequence side: X_sum = Gating(LCE(X)), `[B, n, d]` -> `[B, n_sum, d]` (eq. 10)."""

    def __init__(self, num_tokens: int, num_outputs: int, embedding_dim: int, gate: Gate) -> None:
        super().__init__()
        self.lce = TokenLinear(num_tokens, num_outputs)
        self.gating = Gating(embedding_dim, gate)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n_sum, d]`."""
        return self.gating(self.lce(tokens))


class SequenceSummary(nn.Module):
    """The sequence side: S_sum = Gating([S_CLS | S_PMA | S_recent]) (eq. 11).

    `[B, n_sum + T, d]` -> `[B, n_sum + num_pma + num_recent, d]`. Recent tokens that a short history lacks are zeros,
    and so is what PMA reads of none, if it reads the events only.

    Args:
        num_cls: CLS tokens n_sum that the sequence begins with.
        num_pma: learned queries that pool the sequence by attention.
        num_recent: last events that are kept as they are.
        embedding_dim: d.
        num_heads: heads of the attention.
        gate: kind of gating.
        reads_cls: whether PMA reads the CLS tokens too.
    """

    def __init__(
        self,
        num_cls: int,
        num_pma: int,
        num_recent: int,
        embedding_dim: int,
        num_heads: int,
        gate: Gate,
        reads_cls: bool,
    ) -> None:
        super().__init__()
        self.num_cls, self.num_recent, self.reads_cls = num_cls, num_recent, reads_cls
        self.pma = PMA(num_pma, embedding_dim, num_heads)
        self.gating = Gating(embedding_dim, gate)

    def forward(self, sequence: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """`[B, n_sum + T, d]`, mask `[B, 1, 1, n_sum + T]`, lengths `[B]` of the bodies -> `[B, n_S, d]`."""
        event = lengths.unsqueeze(1) + torch.arange(-self.num_recent, 0, device=lengths.device)  # [B, K]
        index = (self.num_cls + event.clamp(min=0)).unsqueeze(2).expand(-1, -1, sequence.shape[2])
        recent = torch.where(event.unsqueeze(2) >= 0, sequence.gather(1, index), 0)
        if self.reads_cls:
            pooled = self.pma(sequence, mask)
        else:
            is_event = torch.arange(sequence.shape[1], device=lengths.device) >= self.num_cls
            empty = (lengths == 0)[:, None, None]
            # Attention to nothing would be NaN: rows without events read CLS, and forget it.
            pooled = self.pma(sequence, mask & (is_event | empty.unsqueeze(1)))
            pooled = pooled.masked_fill(empty, 0)
        return self.gating(torch.cat([sequence[:, : self.num_cls], pooled, recent], dim=1))
