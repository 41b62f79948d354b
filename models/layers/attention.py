"""Heads of attention over sequences `[B, L, d]`."""

from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """`[B, L, d]` -> `[B, num_heads, L, d / num_heads]`."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[B, num_heads, L, d / num_heads]` -> `[B, L, d]`."""
    return x.transpose(1, 2).flatten(2)
