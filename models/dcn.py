"""DCN (Wang et al., "Deep & Cross Network for Ad Click Predictions", arXiv 1708.05123)."""

from typing import Literal

import torch
from pydantic import Field

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.crosses import CrossNet
from cetnet.models.layers.mlp import LogitLinear, mlp
from cetnet.models.layers.tokens import DenseTokens


class DCNConfig(FieldModelConfig):
    """Settings of DCN."""

    kind: Literal["dcn"] = "dcn"
    num_cross_layers: int = Field(3, ge=1, description="Layers of the cross network.")


class DCN(Component):
    """A cross network with a vector per layer beside an MLP; histories enter as their means."""

    Config = DCNConfig

    def __init__(self, shape: InputShape, config: DCNConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(
            shape.num_tokens, shape.num_dense, shape.embedding_dim, config.dense, config.activation
        )
        num_features = self.inputs.num_tokens * shape.embedding_dim
        self.crossnet = CrossNet(num_features, config.num_cross_layers)
        self.mlp = mlp(
            num_features, config.hidden_units, config.activation, config.dropout, config.batch_norm
        )
        self.output_dim = num_features + config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return concat[crosses, last hidden layer] `[B, output_dim]` and the logit `[B]`."""
        x0 = self.inputs(inputs.tokens, inputs.dense).flatten(1)
        output = torch.cat([self.crossnet(x0), self.mlp(x0)], dim=1)
        return Output(output, self.logit(output))
