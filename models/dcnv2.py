"""DCN V2 (Wang et al., "DCN V2: Improved Deep & Cross Network", arXiv 2008.13535)."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.crosses import CrossNetV2, LowRankCrossNet, MixtureCrossNet
from cetnet.models.layers.mlp import LogitLinear, mlp
from cetnet.models.layers.tokens import DenseTokens

Structure = Literal["parallel", "stacked", "stacked_parallel", "crossnet_only"]


class DCNv2Config(FieldModelConfig):
    """Settings of DCNv2."""

    kind: Literal["dcnv2"] = "dcnv2"
    structure: Structure = Field(
        "parallel",
        description="`parallel`: cross network beside an MLP. `stacked`: the MLP reads the crosses. "
        "`stacked_parallel`: one MLP on the crosses, one on the input. `crossnet_only`: no MLP.",
    )
    num_cross_layers: int = Field(
        3, ge=1, description="Layers of the cross network: degree of the crosses - 1."
    )
    cross: Literal["full", "low_rank", "mixture"] = Field(
        "full",
        description="Weight of a cross: a full matrix, a product of two of `rank` columns, or a gated mixture "
        "of `num_experts` such products.",
    )
    rank: int = Field(32, gt=0, description="Rank of low_rank and mixture crosses.")
    num_experts: int = Field(4, gt=0, description="Experts of mixture crosses.")
    stacked_units: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="Hidden layers of the MLP on the crosses, where structure has one. Default: hidden_units.",
    )


class DCNv2(Component):
    """A cross network, explicit crosses of bounded degree, with an MLP; histories enter as their means.

    The output embedding is what the final Linear reads: concat[cross, deep] if parallel, the last hidden
    layer if stacked, concat of the two last hidden layers if stacked_parallel, the crosses if crossnet_only.
    """

    Config = DCNv2Config

    def __init__(self, shape: InputShape, config: DCNv2Config) -> None:
        super().__init__()
        self.inputs = DenseTokens(
            shape.num_tokens, shape.num_dense, shape.embedding_dim, config.dense, config.activation
        )
        num_features = self.inputs.num_tokens * shape.embedding_dim
        self.crossnet = _crossnet(num_features, config)
        settings = (config.activation, config.dropout, config.batch_norm)
        stacked_units = config.stacked_units or config.hidden_units
        self.stacked = self.parallel = None
        self.output_dim = num_features
        if config.structure.startswith("stacked"):
            self.stacked = mlp(num_features, stacked_units, *settings)
            self.output_dim = stacked_units[-1]
        if config.structure.endswith("parallel"):
            self.parallel = mlp(num_features, config.hidden_units, *settings)
            self.output_dim += config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return the output embedding `[B, output_dim]` and the logit `[B]`."""
        x0 = self.inputs(inputs.tokens, inputs.dense).flatten(1)
        output = self.crossnet(x0)
        if self.stacked is not None:
            output = self.stacked(output)
        if self.parallel is not None:
            output = torch.cat([output, self.parallel(x0)], dim=1)
        return Output(output, self.logit(output))


def _crossnet(num_features: int, config: DCNv2Config) -> nn.Module:
    if config.cross == "low_rank":
        return LowRankCrossNet(num_features, config.num_cross_layers, config.rank)
    if config.cross == "mixture":
        return MixtureCrossNet(num_features, config.num_cross_layers, config.rank, config.num_experts)
    return CrossNetV2(num_features, config.num_cross_layers)
