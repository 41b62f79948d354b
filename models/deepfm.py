"""DeepFM (Guo et al., "DeepFM: A Factorization-Machine based Neural Network", arXiv 1703.04247)."""

from typing import Literal

import torch

from cetnet.models.component import Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.linear_part import ComponentWithLinearPart, LinearPart
from cetnet.models.layers.mlp import LogitLinear
from cetnet.models.layers.products import PairwiseInteraction
from cetnet.models.layers.tokens import DenseTokens


class DeepFMConfig(FieldModelConfig):
    """Settings of DeepFM."""

    kind: Literal["deepfm"] = "deepfm"


class DeepFM(ComponentWithLinearPart):
    """A factorization machine and an MLP on the same embeddings, added up; histories enter as their means.

    The output embedding is concat[pairwise interaction before its sum over d, last hidden layer].
    """

    Config = DeepFMConfig

    def __init__(self, shape: InputShape, config: DeepFMConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        self.linear = LinearPart(shape.num_dense)
        self.interaction = PairwiseInteraction()
        num_features = self.inputs.num_tokens * shape.embedding_dim
        self.mlp = config.mlp(num_features)
        self.logit = LogitLinear(config.hidden_units[-1])
        self.output_dim = shape.embedding_dim + config.hidden_units[-1]

    def forward(self, inputs: Inputs) -> Output:
        """Return the output embedding `[B, output_dim]` and the logit `[B]`."""
        tokens = self.inputs(inputs.tokens, inputs.dense)
        interaction, hidden = self.interaction(tokens), self.mlp(tokens.flatten(1))
        logit = self.linear(inputs) + interaction.sum(1) + self.logit(hidden)
        return Output(torch.cat([interaction, hidden], dim=1), logit)
