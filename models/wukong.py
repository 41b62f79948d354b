"""Wukong (Zhang et al., "Wukong: Towards a Scaling Law for Large-Scale Recommendation", arXiv 2403.02545)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import TokenModelConfig
from cetnet.models.layers.mlp import Activation, mlp
from cetnet.models.layers.tokens import DenseTokens, Readout, TokenLinear


class WukongConfig(TokenModelConfig):
    """Settings of Wukong."""

    kind: Literal["wukong"] = "wukong"
    activation: Activation = Field("relu", description="Activation of every MLP.")
    num_layers: int = Field(3, ge=1, description="Layers; each doubles the order of the interactions.")
    num_fmb_tokens: int = Field(
        16, gt=0, description="Tokens n_F that a layer's factorization machine block makes."
    )
    num_lcb_tokens: int = Field(16, gt=0, description="Tokens n_L that its linear compression block makes.")
    rank: int | None = Field(
        8,
        gt=0,
        description="Columns of the learned projection of the dot products; null: they are not projected.",
    )
    fmb_hidden_units: tuple[int, ...] = Field(
        (512, 256), description="Hidden layers of the factorization machine block's MLP."
    )


class FactorizationMachineBlock(nn.Module):
    """MLP(LN(flatten(X (X^T Y)))), `[B, n, d]` -> `[B, n_F, d]` (section 3.4).

    Y, n x r and learned, compresses the n x n dot products X X^T to n x r before they are taken; without it all are
    read. As in FuxiCTR, the MLP's last layer has an activation too.
    """

    def __init__(
        self,
        num_tokens: int,
        num_outputs: int,
        embedding_dim: int,
        rank: int | None,
        hidden_units: tuple[int, ...],
        activation: Activation,
    ) -> None:
        super().__init__()
        self.projection = None if rank is None else nn.Parameter(torch.randn(num_tokens, rank))
        num_products = num_tokens * (rank or num_tokens)
        self.norm = nn.LayerNorm(num_products)
        self.mlp = mlp(num_products, (*hidden_units, num_outputs * embedding_dim), activation)
        self.num_outputs = num_outputs

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n_F, d]`."""
        products = tokens.transpose(1, 2)  # [B, d, n]
        if self.projection is not None:
            products = torch.bmm(products, self.projection.expand(tokens.shape[0], -1, -1))
        products = torch.bmm(tokens, products)  # [B, n, r]
        return self.mlp(self.norm(products.flatten(1))).unflatten(1, (self.num_outputs, -1))


class WukongLayer(nn.Module):
    """LN([FMB(X) | LCB(X)] + X), `[B, n, d]` -> `[B, n_F + n_L, d]`; where sizes differ, X is mapped linearly.

    FuxiCTR's map has a bias, a number per token, which the LayerNorm takes away again: here it has none.
    """

    def __init__(self, num_tokens: int, embedding_dim: int, config: WukongConfig) -> None:
        super().__init__()
        self.fmb = FactorizationMachineBlock(
            num_tokens,
            config.num_fmb_tokens,
            embedding_dim,
            config.rank,
            config.fmb_hidden_units,
            config.activation,
        )
        self.lcb = TokenLinear(num_tokens, config.num_lcb_tokens)
        self.num_outputs = config.num_fmb_tokens + config.num_lcb_tokens
        self.shortcut = (
            nn.Identity() if num_tokens == self.num_outputs else TokenLinear(num_tokens, self.num_outputs)
        )
        self.norm = nn.LayerNorm(embedding_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n_F + n_L, d]`."""
        interactions = torch.cat([self.fmb(tokens), self.lcb(tokens)], dim=1)
        return self.norm(interactions + self.shortcut(tokens))


class Wukong(Component):
    """Stacked factorization machines; histories enter as their means."""

    Config = WukongConfig

    def __init__(self, shape: InputShape, config: WukongConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        num_tokens = self.inputs.num_tokens
        self.layers = nn.Sequential()
        for _ in range(config.num_layers):
            layer = WukongLayer(num_tokens, shape.embedding_dim, config)
            self.layers.append(layer)
            num_tokens = layer.num_outputs
        self.readout = Readout(num_tokens, config)
        self.output_dim = self.readout.output_dim

    def forward(self, inputs: Inputs) -> Output:
        """Return the output embedding `[B, output_dim]` and the logit `[B]`."""
        return self.readout(self.layers(self.inputs(inputs.tokens, inputs.dense)))
