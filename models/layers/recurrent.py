"""Recurrent layers of DIEN (arXiv 1809.03672)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from models.layers.mlp import linear


class AttentionGRU(nn.Module):
    """GRU whose update gate is attended to: the final state `[B, D]` (section 4.3).

    u = sigmoid(W_u x + U_u s), r = sigmoid(W_r x + U_r s), n = tanh(W_n x + r * (U_n s)),
    s <- (1 - u') s + u' n, with u' = a u (AUGRU, eq. 14 to 16), or u' = a (AGRU, eq. 13), where u is not needed. An
    event with a = 0 leaves the state as it is.

    The gates read the state through nonlinearities, so no parallel scan computes it, and cuDNN's GRU has no place
    for a: it is a loop over positions, in which rows leave as their lists end.
    """

    def __init__(self, dim: int, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.input = linear(dim, (3 if gated else 2) * dim)
        self.state = linear(dim, (3 if gated else 2) * dim)

    def forward(self, events: PackedSequence, attention: Tensor) -> Tensor:
        """Packed events `[E, D]`, attention `[E]` in the same order -> `[B, D]`, in the batch's order."""
        projected = self.input(events.data)
        batch_sizes: list[int] = events.batch_sizes.tolist()
        state = projected.new_zeros(batch_sizes[0], self.state.in_features)
        finished = []
        start = 0
        for size in batch_sizes:
            if size < len(state):
                finished.append(state[size:])
                state = state[:size]
            x, a = projected[start : start + size], attention[start : start + size].unsqueeze(1)
            s = self.state(state)
            if self.gated:
                update_x, reset_x, new_x = x.chunk(3, dim=1)
                update_s, reset_s, new_s = s.chunk(3, dim=1)
                a = a * (update_x + update_s).sigmoid()
            else:
                reset_x, new_x = x.chunk(2, dim=1)
                reset_s, new_s = s.chunk(2, dim=1)
            new = (new_x + (reset_x + reset_s).sigmoid() * new_s).tanh()
            state = state + a * (new - state)
            start += size
        states = torch.cat([state, *reversed(finished)])
        return states if events.unsorted_indices is None else states[events.unsorted_indices]
