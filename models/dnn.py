"""DNN: an MLP on the embeddings (Covington et al., "Deep Neural Networks for YouTube Recommendations", 2016)."""

from typing import Literal

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.mlp import LogitLinear
from cetnet.models.layers.tokens import DenseTokens


class DNNConfig(FieldModelConfig):
    """Settings of DNN."""

    kind: Literal["dnn"] = "dnn"


class DNN(Component):
    """An MLP on the flattened embeddings; histories enter as their means."""

    Config = DNNConfig

    def __init__(self, shape: InputShape, config: DNNConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        self.mlp = config.mlp(self.inputs.num_tokens * shape.embedding_dim)
        self.output_dim = config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return the last hidden layer `[B, output_dim]` and the logit `[B]`."""
        hidden = self.mlp(self.inputs(inputs.tokens, inputs.dense).flatten(1))
        return Output(hidden, self.logit(hidden))
