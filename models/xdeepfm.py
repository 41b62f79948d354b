"""xDeepFM (Lian et al., "xDeepFM: Combining Explicit and Implicit Feature Interactions", arXiv 1803.05170)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cetnet.models.component import Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.linear_part import ComponentWithLinearPart, LinearPart
from cetnet.models.layers.mlp import LogitLinear, linear
from cetnet.models.layers.tokens import DenseTokens


class XDeepFMConfig(FieldModelConfig):
    """Settings of xDeepFM."""

    kind: Literal["xdeepfm"] = "xdeepfm"
    hidden_units: tuple[int, ...] = Field(
        (512, 256, 128), description="Sizes of the hidden layers of the MLP; none: the model is a CIN alone."
    )
    cin_units: tuple[int, ...] = Field(
        (16, 16), min_length=1, description="Feature maps of each layer of the CIN."
    )


class CompressedInteraction(nn.Module):
    """CIN, `[B, F, d]` -> `[B, sum of units]`: vector-wise crosses, summed over d.

    Equations 6 and 8: X^k_h = sum_ij W^{k,h}_ij (X^{k-1}_i * X^0_j) + b^k_h. As in FuxiCTR
    there is no activation between the layers, and no layer's maps are split.
    """

    def __init__(self, num_fields: int, units: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        width = num_fields
        for unit in units:
            self.layers.append(linear(num_fields * width, unit))
            width = unit

    def forward(self, x0: Tensor) -> Tensor:
        """`[B, F, d]` -> `[B, sum of units]`."""
        fields = x0.transpose(1, 2)  # [B, d, F]
        x, pooled = fields, []
        for layer in self.layers:
            products = (x.unsqueeze(3) * fields.unsqueeze(2)).flatten(2)  # [B, d, H F]
            x = layer(products)
            pooled.append(x.sum(1))
        return torch.cat(pooled, dim=1)


class XDeepFM(ComponentWithLinearPart):
    """A linear part, a compressed interaction network and an MLP, added up; histories enter as their means.

    The output embedding is concat[the CIN's pooled maps, last hidden layer]; the linear part is only in the logit.
    """

    Config = XDeepFMConfig

    def __init__(self, shape: InputShape, config: XDeepFMConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        self.linear = LinearPart(shape.num_dense)
        self.cin = CompressedInteraction(self.inputs.num_tokens, config.cin_units)
        self.cin_logit = LogitLinear(sum(config.cin_units))
        self.output_dim = sum(config.cin_units)
        self.mlp = self.mlp_logit = None
        if config.hidden_units:
            num_features = self.inputs.num_tokens * shape.embedding_dim
            self.mlp = config.mlp(num_features)
            self.mlp_logit = LogitLinear(config.hidden_units[-1])
            self.output_dim += config.hidden_units[-1]

    def forward(self, inputs: Inputs) -> Output:
        """Return the output embedding `[B, output_dim]` and the logit `[B]`."""
        tokens = self.inputs(inputs.tokens, inputs.dense)
        embedding = self.cin(tokens)
        logit = self.linear(inputs) + self.cin_logit(embedding)
        if self.mlp is not None and self.mlp_logit is not None:
            hidden = self.mlp(tokens.flatten(1))
            embedding, logit = torch.cat([embedding, hidden], dim=1), logit + self.mlp_logit(hidden)
        return Output(embedding, logit)
