"""DMIN (Xiao et al., "Deep Multi-Interest Network for Click-through Rate Prediction", CIKM 2020)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.din import TargetAttentionConfig
from cetnet.models.layers.attention import merge_heads, split_heads
from cetnet.models.layers.mlp import BatchNorm, LogitLinear, linear, mlp
from cetnet.models.layers.target_attention import Events, TargetAttention, read_behavior
from cetnet.models.layers.tokens import DenseTokens


class DMINConfig(TargetAttentionConfig):
    """Settings of DMIN."""

    kind: Literal["dmin"] = "dmin"
    num_heads: int = Field(2, gt=0, description="Interests per history; divides its size.")
    refiner: bool = Field(True, description="A self-attention layer before the interests are extracted.")
    position_dim: int = Field(
        4, ge=0, description="Size of the position embedding that the candidate attends with; 0: none."
    )
    bn_only_once: bool = Field(
        False, description="With batch_norm: one BatchNorm on the MLP's input instead of one per layer."
    )


class FeedForward(nn.Module):
    """x + Linear(ReLU(Linear(x))), `[..., D]` -> `[..., D]`, twice as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(linear(dim, 2 * dim), nn.ReLU(), linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` -> `[..., D]`."""
        return x + self.layers(x)


class BehaviorRefiner(nn.Module):
    """FFN(LN(x + MHA(x))), each event attending to itself and those before, `[B, T, D]` -> `[B, T, D]`."""

    def __init__(self, dim: int, config: DMINConfig) -> None:
        super().__init__()
        self.num_heads, self.attention_dropout = config.num_heads, config.attention_dropout
        self.query_key_value = linear(dim, 3 * dim)
        self.output = linear(dim, dim)
        self.dropout, self.norm = nn.Dropout(config.dropout), nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`."""
        dropout = self.attention_dropout if self.training else 0.0
        attended = self.output(merge_heads(causal_heads(self.query_key_value(x), self.num_heads, dropout)))
        refined: Tensor = self.feed_forward(self.norm(x + self.dropout(attended)))
        return refined


def causal_heads(query_key_value: Tensor, num_heads: int, dropout: float) -> Tensor:
    """Self-attention of each event to itself and those before, `[B, T, 3 D]` -> `[B, num_heads, T, D / num_heads]`.

    Events are left-aligned, so that none of them comes to see padding; what padding sees is never read.
    """
    query, key, value = (split_heads(part, num_heads) for part in query_key_value.chunk(3, dim=2))
    return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)


class Interest(nn.Module):
    """What one head makes of a history for the candidate, `[B, D]`."""

    def __init__(self, dim: int, max_length: int, config: DMINConfig) -> None:
        super().__init__()
        self.output = linear(dim // config.num_heads, dim, bias=False)
        self.dropout, self.norm = nn.Dropout(config.dropout), nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim)
        self.positions = self.project = None
        if config.position_dim:
            self.positions = nn.Parameter(torch.zeros(max_length, config.position_dim))
            self.project = linear(dim + config.position_dim, dim)
        self.attention = TargetAttention(
            dim, config.attention_units, config.attention_activation, config.attention_dropout, softmax=True
        )

    def forward(self, head: Tensor, events: Events, candidate: Tensor) -> Tensor:
        """The head's output `[E, D / H]` for each event `[E, D]`, candidate `[B, D]` -> `[B, D]`."""
        vectors = self.feed_forward(self.norm(events.vectors + self.dropout(self.output(head))))
        events = events._replace(vectors=vectors)
        query = candidate[events.row]
        if self.positions is not None and self.project is not None:
            query = self.project(torch.cat([query, self.positions[events.position]], dim=1))
        interest: Tensor = self.attention(query, events, candidate.shape[0])
        return interest


class MultiInterest(nn.Module):
    """The interests of a history, side by side, `[B, H D]`."""

    def __init__(self, dim: int, max_length: int, config: DMINConfig) -> None:
        super().__init__()
        if dim % config.num_heads:
            raise ValueError(
                f"dmin: num_heads={config.num_heads} must divide {dim}, the size of a history's events"
            )
        self.num_heads, self.attention_dropout = config.num_heads, config.attention_dropout
        self.refiner = BehaviorRefiner(dim, config) if config.refiner else nn.Identity()
        self.query_key_value = linear(dim, 3 * dim, bias=False)
        self.interests = nn.ModuleList(Interest(dim, max_length, config) for _ in range(config.num_heads))

    def forward(self, candidate: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """`[B, D]`, `[B, T, D]`, `[B]` -> `[B, H D]`."""
        x = self.refiner(x)
        dropout = self.attention_dropout if self.training else 0.0
        heads = causal_heads(self.query_key_value(x), self.num_heads, dropout)  # [B, H, T, D / H]
        events = Events.of(x, lengths)
        heads = heads.transpose(1, 2)[events.row, events.position]  # [E, H, D / H]
        return torch.cat(
            [
                interest(head, events, candidate)
                for interest, head in zip(self.interests, heads.unbind(1), strict=True)
            ],
            dim=1,
        )


class DMIN(Component):
    """A DNN on the candidate and several interests, each of its own, per history."""

    Config = DMINConfig
    reads_sequences = True

    def __init__(self, shape: InputShape, config: DMINConfig) -> None:
        super().__init__()
        d = shape.embedding_dim
        self.inputs = DenseTokens(shape, config)
        self.behaviors = shape.behaviors
        self.histories = nn.ModuleList(
            MultiInterest(len(behavior.sequences) * d, shape.max_length, config)
            for behavior in shape.behaviors
        )
        num_features = (self.inputs.num_tokens + config.num_heads * shape.num_sequences) * d
        once = config.batch_norm and config.bn_only_once
        self.norm = BatchNorm(num_features) if once else nn.Identity()
        self.mlp = mlp(
            num_features,
            config.hidden_units,
            config.activation,
            config.dropout,
            config.batch_norm and not once,
        )
        self.output_dim = config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return the last hidden layer `[B, output_dim]` and the logit `[B]`."""
        features = [self.inputs(inputs.tokens, inputs.dense).flatten(1)]
        for behavior, history in zip(self.behaviors, self.histories, strict=True):
            features.append(history(*read_behavior(inputs, behavior)))
        hidden = self.mlp(self.norm(torch.cat(features, dim=1)))
        return Output(hidden, self.logit(hidden))
