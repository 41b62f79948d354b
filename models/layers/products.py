"""Products of pairs of tokens."""

import torch
from torch import Tensor, nn


class InnerProducts(nn.Module):
    """Inner products <x_i, x_j> of all pairs i < j, `[B, n, d]` -> `[B, n (n - 1) / 2]`.

    `with_self` adds the pairs i = j: `[B, n (n + 1) / 2]`.
    """

    pairs: Tensor

    def __init__(self, num_tokens: int, with_self: bool = False) -> None:
        super().__init__()
        row, column = torch.triu_indices(num_tokens, num_tokens, offset=0 if with_self else 1)
        self.register_buffer("pairs", row * num_tokens + column, persistent=False)
        self.num_outputs = len(row)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, num_outputs]`."""
        return (tokens @ tokens.transpose(1, 2)).flatten(1).index_select(1, self.pairs)


class PairwiseInteraction(nn.Module):
    """Sum over pairs i < j of x_i * x_j, `[B, n, d]` -> `[B, d]`: half of (sum x)^2 - sum x^2.

    Factorization machines, Rendle 2010, lemma 3.1; its sum over d is the sum of all inner products.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, d]`."""
        # In float32 at least: the difference of two sums that are nearly equal.
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        return 0.5 * (tokens.sum(1).square() - tokens.square().sum(1))
