"""Multi-head attention over sequences `[B, L, d]`."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cetnet.models.layers.mlp import linear


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """`[B, L, d]` -> `[B, num_heads, L, d / num_heads]`."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[B, num_heads, L, d / num_heads]` -> `[B, L, d]`."""
    return x.transpose(1, 2).flatten(2)


class PMA(nn.Module):
    """Pooling by multi-head attention: learned queries read the sequence, `[B, L, d]` -> `[B, q, d]` (eq. 4).

    The projections have no bias: softmax cancels a bias of the keys, which would never get a gradient.
    """

    def __init__(self, num_queries: int, embedding_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.randn(num_queries, embedding_dim))
        self.key_value = linear(embedding_dim, 2 * embedding_dim, bias=False)
        self.output = linear(embedding_dim, embedding_dim)

    def forward(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """`[B, L, d]`, mask `[B, 1, 1, L]` (True: may be read) -> `[B, q, d]`."""
        key, value = self.key_value(sequence).chunk(2, dim=2)
        queries = self.queries.expand(len(sequence), -1, -1)
        query, key, value = (split_heads(x, self.num_heads) for x in (queries, key, value))
        return self.output(merge_heads(scaled_dot_product_attention(query, key, value, attn_mask=mask)))


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions, bidirectional: `[B, L, d]` -> `[B, L, d]`.

    Rotary embedding: RoFormer, arXiv 2104.09864, eq. 34; feature i is paired with feature i + d_head / 2. Positions
    are counted from `first_position`; what comes before it is not rotated.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, max_length: int, embedding_dim: int, num_heads: int, first_position: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = linear(embedding_dim, 3 * embedding_dim, bias=False)
        self.output = linear(embedding_dim, embedding_dim)
        head_dim = embedding_dim // num_heads
        frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        positions = (torch.arange(max_length) - first_position).clamp(min=0)
        angles = positions.unsqueeze(1) * frequencies  # [L, d_head / 2]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        """Turn each pair of features by its position's angles, `[B, heads, L, d_head]` -> the same."""
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        a, b = x.chunk(2, dim=3)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=3)

    def forward(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """`[B, L, d]`, mask `[B, 1, 1, L]` (True: may be read) -> `[B, L, d]`."""
        query, key, value = (
            split_heads(x, self.num_heads) for x in self.query_key_value(sequence).chunk(3, dim=2)
        )
        attended = scaled_dot_product_attention(self.rotate(query), self.rotate(key), value, attn_mask=mask)
        return self.output(merge_heads(attended))
