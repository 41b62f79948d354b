"""IPNN (Qu et al., "Product-based Neural Networks for User Response Prediction", arXiv 1611.00144)."""

from typing import Literal

import torch
from pydantic import Field

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.mlp import LogitLinear
from cetnet.models.layers.products import InnerProducts
from cetnet.models.layers.tokens import DenseTokens


class IPNNConfig(FieldModelConfig):
    """Settings of IPNN."""

    kind: Literal["ipnn"] = "ipnn"
    embeddings: bool = Field(
        True,
        description="The MLP reads the embeddings beside their inner products; false: only the products, "
        "as in the multi-embedding study (arXiv 2310.04400).",
    )


class IPNN(Component):
    """An MLP on the embeddings and the inner products of all their pairs; histories enter as their means."""

    Config = IPNNConfig

    def __init__(self, shape: InputShape, config: IPNNConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        self.products = InnerProducts(self.inputs.num_tokens)
        self.embeddings = config.embeddings
        num_features = self.products.num_outputs
        if config.embeddings:
            num_features += self.inputs.num_tokens * shape.embedding_dim
        elif num_features == 0:
            raise ValueError("ipnn without embeddings needs at least two features")
        self.mlp = config.mlp(num_features)
        self.output_dim = config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return the last hidden layer `[B, output_dim]` and the logit `[B]`."""
        tokens = self.inputs(inputs.tokens, inputs.dense)
        features = self.products(tokens)
        if self.embeddings:
            features = torch.cat([tokens.flatten(1), features], dim=1)
        hidden = self.mlp(features)
        return Output(hidden, self.logit(hidden))
