"""MaskNet (Wang et al., "MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by
Instance-Guided Mask", arXiv 2102.07619).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.mlp import Activation, LogitLinear, activation_layer, linear
from cetnet.models.layers.tokens import DenseTokens


class MaskNetConfig(FieldModelConfig):
    """Settings of MaskNet."""

    kind: Literal["masknet"] = "masknet"
    structure: Literal["parallel", "serial"] = Field(
        "parallel",
        description="`parallel`: num_blocks side by side, then an MLP of hidden_units. `serial`: one block after "
        "the other, of hidden_units.",
    )
    num_blocks: int = Field(3, gt=0, description="Parallel blocks.")
    block_dim: int = Field(64, gt=0, description="Output of a parallel block.")
    reduction_ratio: float = Field(
        1.0, gt=0, description="Hidden layer of a mask, relative to what it masks; the paper aggregates: > 1."
    )
    embedding_norm: bool = Field(True, description="LayerNorm each embedding before it is masked.")
    block_norm: bool = Field(True, description="LayerNorm in the blocks.")


class MaskBlock(nn.Module):
    """Dropout(act(LN(W (mask(v_emb) * v_hidden)))), mask = Linear(ReLU(Linear(v_emb))) (eq. 5 to 9)."""

    def __init__(
        self,
        num_embedded: int,
        num_hidden: int,
        num_outputs: int,
        reduction_ratio: float,
        activation: Activation,
        norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        width = max(1, int(num_hidden * reduction_ratio))
        self.mask = nn.Sequential(linear(num_embedded, width), nn.ReLU(), linear(width, num_hidden))
        self.hidden = nn.Sequential(linear(num_hidden, num_outputs, bias=False))
        if norm:
            self.hidden.append(nn.LayerNorm(num_outputs))
        self.hidden.append(activation_layer(activation, num_outputs))
        if dropout > 0:
            self.hidden.append(nn.Dropout(dropout))

    def forward(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """`[B, num_embedded]`, `[B, num_hidden]` -> `[B, num_outputs]`."""
        output: Tensor = self.hidden(self.mask(embedded) * hidden)
        return output


class MaskNet(Component):
    """Hidden layers multiplied by masks made of the embeddings; histories enter as their means."""

    Config = MaskNetConfig

    def __init__(self, shape: InputShape, config: MaskNetConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        num_tokens, d = self.inputs.num_tokens, shape.embedding_dim
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(num_tokens if config.embedding_norm else 0))
        num_features = num_tokens * d
        serial = config.structure == "serial"
        sizes = (
            list(zip((num_features, *config.hidden_units), config.hidden_units, strict=False))
            if serial
            else [(num_features, config.block_dim)] * config.num_blocks
        )
        self.blocks = nn.ModuleList(
            MaskBlock(
                num_features,
                num_hidden,
                num_outputs,
                config.reduction_ratio,
                config.activation,
                config.block_norm,
                config.dropout,
            )
            for num_hidden, num_outputs in sizes
        )
        self.mlp = None if serial else config.mlp(config.num_blocks * config.block_dim)
        self.output_dim = config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return the last hidden layer `[B, output_dim]` and the logit `[B]`."""
        tokens = self.inputs(inputs.tokens, inputs.dense)
        embedded = tokens.flatten(1)
        if self.norms:
            tokens = torch.stack(
                [norm(x) for norm, x in zip(self.norms, tokens.unbind(1), strict=True)], dim=1
            )
        hidden = tokens.flatten(1)
        if self.mlp is None:
            for block in self.blocks:
                hidden = block(embedded, hidden)
        else:
            hidden = self.mlp(torch.cat([block(embedded, hidden) for block in self.blocks], dim=1))
        return Output(hidden, self.logit(hidden))
