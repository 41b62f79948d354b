"""DIN (Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", arXiv 1706.06978)."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.mlp import Activation, LogitLinear
from cetnet.models.layers.target_attention import Events, TargetAttention, read_behavior
from cetnet.models.layers.tokens import DenseTokens


class TargetAttentionConfig(FieldModelConfig):
    """Settings of the components whose candidate attends to histories (DIN, DIEN, DMIN)."""

    attention_units: tuple[int, ...] = Field(
        (256, 128), description="Hidden layers of the attention unit, an MLP on candidate and event."
    )
    attention_activation: Activation = Field("dice", description="Activation of the attention unit.")
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout in the attention unit, and in DMIN of the attention of events."
    )


class DINConfig(TargetAttentionConfig):
    """Settings of DIN."""

    kind: Literal["din"] = "din"
    activation: Activation = Field("dice", description="Activation of the MLP.")
    softmax: bool = Field(
        True, description="Normalise the attention of a history; the paper does not, to keep its intensity."
    )


class DIN(Component):
    """A DNN that reads each history as the sum of its events, weighted by the candidate (section 4.3)."""

    Config = DINConfig
    reads_sequences = True

    def __init__(self, shape: InputShape, config: DINConfig) -> None:
        super().__init__()
        d = shape.embedding_dim
        self.inputs = DenseTokens(shape, config)
        self.behaviors = shape.behaviors
        self.attentions = nn.ModuleList(
            TargetAttention(
                len(behavior.sequences) * d,
                config.attention_units,
                config.attention_activation,
                config.attention_dropout,
                config.softmax,
            )
            for behavior in shape.behaviors
        )
        self.mlp = config.mlp((self.inputs.num_tokens + shape.num_sequences) * d)
        self.output_dim = config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return the last hidden layer `[B, output_dim]` and the logit `[B]`."""
        features = [self.inputs(inputs.tokens, inputs.dense).flatten(1)]
        for behavior, attention in zip(self.behaviors, self.attentions, strict=True):
            candidate, sequence, lengths = read_behavior(inputs, behavior)
            events = Events.of(sequence, lengths)
            features.append(attention(candidate[events.row], events, candidate.shape[0]))
        hidden = self.mlp(torch.cat(features, dim=1))
        return Output(hidden, self.logit(hidden))
