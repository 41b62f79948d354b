"""DIEN (Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", arXiv 1809.03672)."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.din import TargetAttentionConfig
from cetnet.models.layers.mlp import LogitLinear, linear, mlp
from cetnet.models.layers.sequences import beyond_end
from cetnet.models.layers.target_attention import AttentionUnit, Events, event_softmax, read_behavior
from cetnet.models.layers.tokens import DenseTokens


class DIENConfig(TargetAttentionConfig):
    """Settings of DIEN."""

    kind: Literal["dien"] = "dien"
    attention: Literal["din", "bilinear", "dot"] = Field(
        "din",
        description="Score of an interest h for the candidate q: `din` = DIN's unit, `bilinear` = h W q (the "
        "paper's), `dot` = h q.",
    )
    auxiliary_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the auxiliary loss: an interest should tell the next event from one drawn from "
        "the batch. The paper has 1, BARS 0.",
    )
    auxiliary_units: tuple[int, ...] = Field((100, 50), description="Hidden layers of the auxiliary loss.")


class AttentionGRU(nn.Module):
    """AUGRU, a GRU whose update gate is attended to: the final state `[B, D]` (section 4.3, eq. 14 to 16).

    s <- s + a u (n - s) is a GRU's step, s <- s + u (n - s), taken a part a of the way: an event with a = 0 leaves
    the state as it is. (The authors' code makes a = 0 a plain GRU step.)

    The gates read the state through nonlinearities, so no parallel scan computes it, and cuDNN's GRU has no place
    for a: it is a loop over positions, which rows leave as their lists end, around PyTorch's fused cell.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(dim, dim)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)
        nn.init.xavier_normal_(self.cell.weight_ih)
        nn.init.xavier_normal_(self.cell.weight_hh)

    def forward(self, events: PackedSequence, attention: Tensor) -> Tensor:
        """Packed events `[E, D]`, attention `[E]` in the same order -> `[B, D]`, in the batch's order."""
        sizes: list[int] = events.batch_sizes.tolist()
        steps = zip(sizes, events.data.split(sizes), attention.unsqueeze(1).split(sizes), strict=True)
        state = attention.new_zeros(sizes[0], self.cell.hidden_size)
        finished = []
        for size, x, a in steps:
            if size < len(state):
                finished.append(state[size:])
                state = state[:size]
            state = state.lerp(self.cell(x, state).to(state.dtype), a)  # in float32, also under autocast
        states = torch.cat([state, *reversed(finished)])
        return states if events.unsorted_indices is None else states[events.unsorted_indices]


def gated_states(gates: Tensor, attention: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The states `[B, T, D]` of a GRU, of each step of which a part is taken, as a loop that torch.export keeps.

    Args:
        gates: what the inputs give to the gates, `[B, T, 3 D]`.
        attention: the part taken, `[B, T, 1]`; 1: a GRU's.
        weight, bias: of the state, `[3 D, D]` and `[3 D]`.
    """
    batch, dim = gates.shape[0], weight.shape[1]

    def step(state: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        gate, a = inputs
        of_state = F.linear(state, weight, bias)
        reset, update = (gate + of_state)[:, : 2 * dim].sigmoid().chunk(2, dim=1)
        new = (gate[:, 2 * dim :] + reset * of_state[:, 2 * dim :]).tanh()
        state = state + a * (1 - update) * (new - state)
        # Inductor must find B among what the step reads.
        return state, state.clone().view(batch, dim)

    start = gates.new_zeros(batch, dim)
    _, states = scan(step, start, (gates.transpose(0, 1), attention.transpose(0, 1)))
    return states.transpose(0, 1).clone(memory_format=torch.contiguous_format)


class InterestEvolution(nn.Module):
    """A history's final interest `[B, D]`: GRU, attention of the candidate, AUGRU (section 4.2 and 4.3)."""

    def __init__(self, dim: int, config: DIENConfig) -> None:
        super().__init__()
        self.extraction = nn.GRU(dim, dim, batch_first=True)
        self.attention: nn.Module | None = None
        if config.attention == "din":
            self.attention = AttentionUnit(
                dim, config.attention_units, config.attention_activation, config.attention_dropout
            )
        elif config.attention == "bilinear":
            self.attention = nn.Bilinear(dim, dim, 1, bias=False)
            self.attention.weight.data.copy_(torch.eye(dim))
        self.evolution = AttentionGRU(dim)

    def forward(self, candidate: Tensor, sequence: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, D]`, `[B, T, D]`, `[B]` -> the final state `[B, D]` (zeros: no history), interests `[B, T, D]`."""
        if torch.compiler.is_exporting():
            return self._padded(candidate, sequence, lengths)
        # Rows without history take part with one position of zeros, which attention 0 keeps out of the state.
        packed = pack_padded_sequence(
            sequence, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        packed = self.extraction(packed)[0]
        interests, _ = pad_packed_sequence(packed, batch_first=True, total_length=sequence.shape[1])
        events = Events.of(interests, lengths)
        scores = self._scores(candidate[events.row], events.vectors)
        attention = event_softmax(scores, events, candidate.shape[0])
        grid = attention.new_zeros(interests.shape[:2]).index_put((events.row, events.position), attention)
        return self.evolution(packed, _in_order_of(packed, grid)), interests

    def _padded(self, candidate: Tensor, sequence: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same with every row as long as the longest, since a program can't depend on the lengths' values."""
        weight_in, weight, bias_in, bias = self.extraction.all_weights[0]
        gates = F.linear(sequence, weight_in, bias_in)
        interests = gated_states(gates, torch.ones_like(gates[:, :, :1]), weight, bias)
        events = Events.of(interests, lengths)
        scores = self._scores(candidate[events.row], events.vectors)
        attention = event_softmax(scores, events, candidate.shape[0])
        # Beyond the end the state stays.
        attention = attention.masked_fill(beyond_end(lengths, sequence.shape[1]).flatten(), 0)
        cell = self.evolution.cell
        gates = F.linear(interests, cell.weight_ih, cell.bias_ih)
        states = gated_states(gates, attention.view(*sequence.shape[:2], 1), cell.weight_hh, cell.bias_hh)
        return states[:, -1], interests

    def _scores(self, query: Tensor, interest: Tensor) -> Tensor:
        if self.attention is None:
            return (query * interest).sum(1)
        if isinstance(self.attention, nn.Bilinear):  # which autocast passes over
            query, interest = (x.to(self.attention.weight.dtype) for x in (query, interest))
        scores: Tensor = self.attention(query, interest)
        return scores.view(-1)


def _in_order_of(packed: PackedSequence, grid: Tensor) -> Tensor:
    """Entries of `[B, T]` in the order in which `packed` has its positions, `[E]`."""
    order = packed.sorted_indices
    longest = len(packed.batch_sizes)
    taken = torch.arange(len(grid), device=grid.device) < packed.batch_sizes.to(grid.device).unsqueeze(1)
    return grid[order, :longest].T[taken]  # position by position, the longest lists first


class NextEventLoss(nn.Module):
    """Auxiliary loss `[B]`: tell each next event from a random one by the interest before it (eq. 6).

    Mean over the row's events but the first; an event of a random place in the batch stands for one that was
    not clicked, which the data does not have.
    """

    def __init__(self, dim: int, hidden_units: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp = mlp(2 * dim, hidden_units, "sigmoid")
        self.mlp.append(linear((2 * dim, *hidden_units)[-1], 1))

    def forward(self, interests: Tensor, sequence: Tensor, lengths: Tensor) -> Tensor:
        """`[B, T, D]` twice, `[B]` -> `[B]`."""
        following = Events.of(sequence[:, 1:], lengths - 1)
        everything = Events.of(sequence, lengths).vectors
        drawn = torch.randint(max(1, len(everything)), (len(following.row),), device=sequence.device)
        before = interests[following.row, following.position]
        right = self.mlp(torch.cat([before, following.vectors], dim=1)).squeeze(1).float()
        wrong = self.mlp(torch.cat([before, everything[drawn]], dim=1)).squeeze(1).float()
        loss = F.softplus(-right) + F.softplus(wrong)
        total = loss.new_zeros(len(lengths)).index_add(0, following.row, loss)
        return total / (lengths - 1).clamp(min=1)


class DIEN(Component):
    """A DNN on the candidate and the interest that each history has evolved to."""

    Config = DIENConfig
    reads_sequences = True

    def __init__(self, shape: InputShape, config: DIENConfig) -> None:
        super().__init__()
        d = shape.embedding_dim
        self.inputs = DenseTokens(shape, config)
        self.behaviors = shape.behaviors
        dims = [len(behavior.sequences) * d for behavior in shape.behaviors]
        self.evolutions = nn.ModuleList(InterestEvolution(dim, config) for dim in dims)
        self.auxiliary_weight = config.auxiliary_weight
        self.auxiliary = nn.ModuleList(
            NextEventLoss(dim, config.auxiliary_units) for dim in dims if config.auxiliary_weight
        )
        self.mlp = config.mlp((self.inputs.num_tokens + shape.num_sequences) * d)
        self.output_dim = config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return the last hidden layer `[B, output_dim]`, the logit `[B]`, in training the auxiliary loss `[B]`."""
        features = [self.inputs(inputs.tokens, inputs.dense).flatten(1)]
        auxiliary = None
        for i, (behavior, evolution) in enumerate(zip(self.behaviors, self.evolutions, strict=True)):
            candidate, sequence, lengths = read_behavior(inputs, behavior)
            state, interests = evolution(candidate, sequence, lengths)
            features.append(state)
            if self.auxiliary and self.training:
                loss = self.auxiliary_weight * self.auxiliary[i](interests, sequence, lengths)
                auxiliary = loss if auxiliary is None else auxiliary + loss
        hidden = self.mlp(torch.cat(features, dim=1))
        return Output(hidden, self.logit(hidden), auxiliary)
