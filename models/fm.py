"""FM (Rendle, "Factorization Machines", ICDM 2010)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from cetnet.models.component import Inputs, InputShape, Output
from cetnet.models.component_config import ComponentConfig
from cetnet.models.layers.config import DenseMode
from cetnet.models.layers.linear_part import ComponentWithLinearPart, LinearPart
from cetnet.models.layers.mlp import Activation
from cetnet.models.layers.products import PairwiseInteraction
from cetnet.models.layers.tokens import DenseTokens


class FMConfig(ComponentConfig):
    """Settings of FM."""

    kind: Literal["fm"] = "fm"
    embedding_std: float = Field(1e-4, gt=0, description="Embeddings start from N(0, std); 1e-4 as in BARS.")
    dense: DenseMode = Field(
        "field",
        description="`field`: each dense feature is one token, its value times a "
        "learned vector; `token`: an MLP on all of them makes one.",
    )
    activation: ClassVar[Activation] = "relu"
    """Of that MLP; not a key."""


class FM(ComponentWithLinearPart):
    """Bias, linear part and the inner products of all pairs of embeddings, added up (eq. 1).

    The output embedding is the pairwise interaction before its sum over d: the model has no other.
    """

    Config = FMConfig

    def __init__(self, shape: InputShape, config: FMConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        self.linear = LinearPart(shape.num_dense)
        self.bias = nn.Parameter(torch.zeros(()))
        self.interaction = PairwiseInteraction()
        self.output_dim = shape.embedding_dim

    def start_at(self, logit: float) -> None:
        """Have its untrained predictions lie around `logit`."""
        nn.init.constant_(self.bias, logit)

    def forward(self, inputs: Inputs) -> Output:
        """Return the pairwise interaction `[B, d]` and the logit `[B]`."""
        interaction = self.interaction(self.inputs(inputs.tokens, inputs.dense))
        return Output(interaction, self.bias + self.linear(inputs) + interaction.sum(1))
