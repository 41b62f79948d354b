"""DMIN (Xiao et al., "Deep Multi-Interest Network for Click-through Rate Prediction", CIKM 2020)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.component import Component, Inputs, InputShape, Output
from models.din import TargetAttentionConfig
from models.layers.attention import merge_heads, split_heads
from models.layers.mlp import BatchNorm, LogitLinear, linear, mlp
from models.layers.target_attention import Events, TargetAttention, read_behavior
from models.layers.tokens import DenseTokens


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
    """x + Linear(ReLU(Linear(x))), `[B, T, D]` -> `[B, T, D]`, twice as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(linear(dim, 2 * dim), nn.ReLU(), linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`."""
        return x + self.layers(x)


class BehaviorRefiner(nn.Module):
    """FFN(LN(x + MHA(x))), each event attending to itself and those before, `[B, T, D]` -> `[B, T, D]`."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = linear(dim, 3 * dim)
        self.output = linear(dim, dim)
        self.dropout, self.norm, self.feed_forward = nn.Dropout(dropout), nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`[B, T, D]`, mask `[B, 1, T, T]` (True: may be read) -> `[B, T, D]`."""
        query, key, value = (
            split_heads(part, self.num_heads) for part in self.query_key_value(x).chunk(3, dim=2)
        )
        attended = self.output(merge_heads(scaled_dot_product_attention(query, key, value, attn_mask=mask)))
        refined: Tensor = self.feed_forward(self.norm(x + self.dropout(attended)))
        return refined


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

    def forward(self, head: Tensor, x: Tensor, candidate: Tensor, lengths: Tensor) -> Tensor:
        """The head's output `[B, T, D / H]`, its input `[B, T, D]`, candidate `[B, D]`, lengths `[B]` -> `[B, D]`."""
        events = Events.of(self.feed_forward(self.norm(x + self.dropout(self.output(head)))), lengths)
        query = candidate[events.row]
        if self.positions is not None and self.project is not None:
            query = self.project(torch.cat([query, self.positions[events.position]], dim=1))
        interest: Tensor = self.attention(query, events, len(candidate))
        return interest


class MultiInterest(nn.Module):
    """The interests of a history, side by side, `[B, H D]`.

    An event attends to itself and the valid ones before it.
    """

    def __init__(self, dim: int, max_length: int, config: DMINConfig) -> None:
        super().__init__()
        if dim % config.num_heads:
            raise ValueError(
                f"dmin: num_heads={config.num_heads} must divide {dim}, the size of a history's events"
            )
        self.num_heads = config.num_heads
        self.refiner = BehaviorRefiner(dim, config.num_heads, config.dropout) if config.refiner else None
        self.query_key_value = linear(dim, 3 * dim, bias=False)
        self.interests = nn.ModuleList(Interest(dim, max_length, config) for _ in range(config.num_heads))

    def forward(self, candidate: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """`[B, D]`, `[B, T, D]`, `[B]` -> `[B, H D]`."""
        position = torch.arange(x.shape[1], device=x.device)
        earlier = position.unsqueeze(1) > position
        itself = position.unsqueeze(1) == position
        mask = ((earlier & (position < lengths[:, None, None])) | itself).unsqueeze(1)  # [B, 1, T, T]
        if self.refiner is not None:
            x = self.refiner(x, mask)
        query, key, value = (
            split_heads(part, self.num_heads) for part in self.query_key_value(x).chunk(3, dim=2)
        )
        heads = scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [B, H, T, D / H]
        return torch.cat(
            [
                interest(head, x, candidate, lengths)
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
        self.inputs = DenseTokens(shape.num_tokens, shape.num_dense, d, config.dense, config.activation)
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
