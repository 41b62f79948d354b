"""Layers on tokens `[B, n, d]`."""

from typing import Protocol

import torch
from torch import Tensor, nn

from cetnet.models.component import InputShape, Output
from cetnet.models.layers.config import DenseMode, TokenModelConfig
from cetnet.models.layers.mlp import Activation, LogitLinear, linear, mlp


class TokenLinear(nn.Module):
    """Linear map on the token axis, `[B, m, d]` -> `[B, l, d]`: Y = W X with W in R^{l x m}.

    DHEN's shortcut and InterFormer's Linear Compressed Embedding (LCE, app. A.2.1) are this map.
    """

    def __init__(self, num_tokens: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = linear(num_tokens, num_outputs, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, m, d]` -> `[B, l, d]`."""
        return self.linear(tokens.transpose(1, 2)).transpose(1, 2)


class DenseTokensConfig(Protocol):
    """What `DenseTokens` reads of a component's settings."""

    @property
    def dense(self) -> DenseMode:
        """How dense features become tokens."""

    @property
    def activation(self) -> Activation:
        """Activation of the MLP that makes one token."""


class DenseTokens(nn.Module):
    """Appends the dense features to the tokens, `[B, n, d]` and `[B, m]` -> `[B, num_tokens, d]`.

    dense `field`: scalar i becomes x_i v_i, one Linear(1, d) without bias per scalar, as FuxiCTR embeds
    numeric fields. dense `token`: one MLP makes one token of all scalars. Nothing is appended when m = 0.
    """

    def __init__(self, shape: InputShape, config: DenseTokensConfig) -> None:
        super().__init__()
        num_dense, embedding_dim = shape.num_dense, shape.embedding_dim
        self.fields: nn.Parameter | None = None
        self.mlp: nn.Sequential | None = None
        if num_dense > 0 and config.dense == "field":
            # One row per Linear(1, d), each with the variance 2 / (1 + d) of its own xavier_normal.
            self.fields = nn.Parameter(
                torch.randn(num_dense, embedding_dim) * (2 / (1 + embedding_dim)) ** 0.5
            )
        elif num_dense > 0:
            self.mlp = mlp(num_dense, (embedding_dim,), config.activation)
            self.mlp.append(linear(embedding_dim, embedding_dim))
        self.num_tokens = shape.num_tokens + (num_dense if config.dense == "field" else min(num_dense, 1))

    def forward(self, tokens: Tensor, dense: Tensor) -> Tensor:
        """`[B, n, d]`, `[B, m]` -> `[B, num_tokens, d]`."""
        if self.fields is not None:
            return torch.cat([tokens, (dense.unsqueeze(2) * self.fields).to(tokens.dtype)], dim=1)
        if self.mlp is not None:
            return torch.cat([tokens, self.mlp(dense).unsqueeze(1)], dim=1)
        return tokens


class Readout(nn.Module):
    """Top MLP of a component that ends in tokens: its output embedding `[B, output_dim]` and logit `[B]`.

    Both modes compute the same logit, Linear(MLP(flatten(tokens))); they differ in the embedding offered to
    the fusion, which is one affine map: the MLP's last hidden layer, or the flattened tokens themselves.
    """

    def __init__(self, num_tokens: int, config: TokenModelConfig) -> None:
        super().__init__()
        self.mode = config.readout
        num_features = num_tokens * config.embedding_dim
        self.mlp = config.mlp(num_features)
        self.logit = LogitLinear(config.hidden_units[-1])
        self.output_dim = config.hidden_units[-1] if config.readout == "hidden" else num_features

    def forward(self, tokens: Tensor) -> Output:
        """`[B, n, d]` -> `[B, output_dim]`, `[B]`."""
        features = tokens.flatten(1)
        hidden = self.mlp(features)
        return Output(hidden if self.mode == "hidden" else features, self.logit(hidden))
