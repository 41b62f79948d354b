"""DCN (Wang et al., "Deep & Cross Network for Ad Click Predictions", arXiv 1708.05123)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.mlp import LogitLinear, linear
from cetnet.models.layers.tokens import DenseTokens


class DCNConfig(FieldModelConfig):
    """Settings of DCN."""

    kind: Literal["dcn"] = "dcn"
    num_cross_layers: int = Field(3, ge=1, description="Layers of the cross network.")


class CrossNet(nn.Module):
    """Cross network with a vector per layer, `[B, D]` -> `[B, D]`: x_{l+1} = x_0 (w_l . x_l) + b_l + x_l (eq. 3)."""

    def __init__(self, num_features: int, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.ModuleList(linear(num_features, 1, bias=False) for _ in range(num_layers))
        self.biases = nn.Parameter(torch.zeros(num_layers, num_features))

    def forward(self, x0: Tensor) -> Tensor:
        """`[B, D]` -> `[B, D]`."""
        x = x0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = x0 * weight(x) + bias + x
        return x


class DCN(Component):
    """A cross network with a vector per layer beside an MLP; histories enter as their means."""

    Config = DCNConfig

    def __init__(self, shape: InputShape, config: DCNConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        num_features = self.inputs.num_tokens * shape.embedding_dim
        self.crossnet = CrossNet(num_features, config.num_cross_layers)
        self.mlp = config.mlp(num_features)
        self.output_dim = num_features + config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return concat[crosses, last hidden layer] `[B, output_dim]` and the logit `[B]`."""
        x0 = self.inputs(inputs.tokens, inputs.dense).flatten(1)
        output = torch.cat([self.crossnet(x0), self.mlp(x0)], dim=1)
        return Output(output, self.logit(output))
