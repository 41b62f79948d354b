"""Target attention: a candidate reads a list of events (Deep Interest Network, arXiv 1706.06978)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cetnet.models.component import Behavior, Inputs
from cetnet.models.layers.mlp import Activation, linear, mlp
from cetnet.models.layers.sequences import align_recent, beyond_end


class Events(NamedTuple):
    """The valid positions of a batch of event lists, one after the other.

    Most histories are far shorter than the longest: what is computed per event is computed on these. It
    also keeps padding from having any influence, on Dice's batch statistics too, where FuxiCTR counts it.

    While a model is exported, all positions of the grid are there, E = B T, and those beyond the ends get no weight:
    how many are valid is a size that a program can't depend on.

    Attributes:
        vectors: `[E, D]`.
        row: `[E]` int64, the row of the batch.
        position: `[E]` int64, 0 for the oldest event of its list.
        beyond: bool `[B, T]`, which positions are padding, if they are there; else None.
    """

    vectors: Tensor
    row: Tensor
    position: Tensor
    beyond: Tensor | None = None

    @classmethod
    def of(cls, sequence: Tensor, lengths: Tensor) -> "Events":
        """Events of `[B, T, D]`, left-aligned, with `lengths` `[B]`."""
        beyond = beyond_end(lengths, sequence.shape[1])
        if torch.compiler.is_exporting():
            every = torch.arange(beyond.shape[0] * beyond.shape[1])
            row = every // beyond.shape[1]
            return cls(sequence.flatten(0, 1), row, every - row * beyond.shape[1], beyond)
        row, position = (~beyond).nonzero(as_tuple=True)
        return cls(sequence[row, position], row, position)


def read_behavior(inputs: Inputs, behavior: Behavior) -> tuple[Tensor, Tensor, Tensor]:
    """The candidate `[B, D]`, the events `[B, T, D]` and their lengths `[B]`, D = d per sequence.

    Where the candidate has nothing that a sequence could be compared with, its part is zeros. Sequences of unequal
    lengths, which are not columns of one list of events, share their most recent positions.
    """
    nothing = torch.zeros_like(inputs.sequences[:, 0, 0])
    parts = [nothing if target is None else inputs.tokens[:, target] for target in behavior.targets]
    members = list(behavior.sequences)
    events, lengths = align_recent(inputs.sequences[:, members], inputs.lengths[:, members])
    return torch.cat(parts, dim=1), events, lengths


class AttentionUnit(nn.Module):
    """DIN's activation unit: a score `[E]` of each event, an MLP of [q, h, q - h, q * h] (section 4.3)."""

    def __init__(self, dim: int, hidden_units: Sequence[int], activation: Activation, dropout: float) -> None:
        super().__init__()
        self.mlp = mlp(4 * dim, hidden_units, activation, dropout)
        self.mlp.append(linear((4 * dim, *hidden_units)[-1], 1))

    def forward(self, query: Tensor, event: Tensor) -> Tensor:
        """The query of each event `[E, D]`, events `[E, D]` -> `[E]`."""
        scores: Tensor = self.mlp(torch.cat([query, event, query - event, query * event], dim=1))
        return scores.squeeze(1)


def event_softmax(scores: Tensor, events: Events, batch_size: int) -> Tensor:
    """Softmax of the scores `[E]` within each row, `[E]` float32."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    # Not -inf, which would make NaN of rows without an event.
    lowest = torch.finfo(dtype).min
    if events.beyond is not None:
        grid = scores.to(dtype).view(events.beyond.shape).masked_fill(events.beyond, lowest)
        return grid.softmax(dim=1).flatten()
    longest = int(events.position.max()) + 1 if len(scores) else 0
    grid = scores.new_full((batch_size, longest), lowest, dtype=dtype)
    grid = grid.index_put((events.row, events.position), scores.to(grid.dtype)).softmax(dim=1)
    return grid[events.row, events.position]


def weighted_sum(weights: Tensor, events: Events, batch_size: int) -> Tensor:
    """Sum over each row's events, `[E]` and `[E, D]` -> `[B, D]`; zeros for a row without events."""
    if events.beyond is not None:
        weights = weights.view(events.beyond.shape).masked_fill(events.beyond, 0).unsqueeze(1)  # [B, 1, T]
        return torch.bmm(weights, events.vectors.view(batch_size, events.beyond.shape[1], -1)).squeeze(1)
    # In float32 at least: many are added up, one after the other.
    weighted = weights.to(torch.promote_types(weights.dtype, torch.float32)).unsqueeze(1) * events.vectors
    return weighted.new_zeros(batch_size, weighted.shape[1]).index_add(0, events.row, weighted)


class TargetAttention(nn.Module):
    """Sum of the events, each weighted by what it means to the candidate (eq. 3).

    Without `softmax` the scores are the weights, as in the paper, which keeps the intensity of an interest.
    """

    def __init__(
        self,
        dim: int,
        hidden_units: Sequence[int],
        activation: Activation,
        dropout: float,
        softmax: bool,
    ) -> None:
        super().__init__()
        self.unit = AttentionUnit(dim, hidden_units, activation, dropout)
        self.softmax = softmax

    def forward(self, query: Tensor, events: Events, batch_size: int) -> Tensor:
        """The query of each event `[E, D]`, and the events -> `[B, D]`."""
        scores = self.unit(query, events.vectors)
        weights = event_softmax(scores, events, batch_size) if self.softmax else scores
        return weighted_sum(weights, events, batch_size)
