"""Wide & Deep (Cheng et al., "Wide & Deep Learning for Recommender Systems", arXiv 1606.07792)."""

from typing import Literal

from cetnet.models.component import Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.linear_part import ComponentWithLinearPart, LinearPart
from cetnet.models.layers.mlp import LogitLinear
from cetnet.models.layers.tokens import DenseTokens


class WideDeepConfig(FieldModelConfig):
    """Settings of Wide & Deep."""

    kind: Literal["wide_deep"] = "wide_deep"


class WideDeep(ComponentWithLinearPart):
    """A linear part and an MLP, added up; histories enter as their means.

    The paper's hand-made cross products are not there: a schema can hold them as features. The output
    embedding is the last hidden layer.
    """

    Config = WideDeepConfig

    def __init__(self, shape: InputShape, config: WideDeepConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        self.linear = LinearPart(shape.num_dense)
        num_features = self.inputs.num_tokens * shape.embedding_dim
        self.mlp = config.mlp(num_features)
        self.output_dim = config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return the last hidden layer `[B, output_dim]` and the logit `[B]`."""
        hidden = self.mlp(self.inputs(inputs.tokens, inputs.dense).flatten(1))
        return Output(hidden, self.linear(inputs) + self.logit(hidden))
