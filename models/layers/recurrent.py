"""Recurrent layers of DIEN (arXiv 1809.03672)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


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
