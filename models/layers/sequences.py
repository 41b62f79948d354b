"""Lists of events `[B, T, d]`, oldest first, left-aligned, with lengths `[B]`: what lies beyond is never read."""

import torch
from torch import Tensor


def beyond_end(lengths: Tensor, longest: int) -> Tensor:
    """Whether a position is padding: lengths `[...]` -> bool `[..., longest]`."""
    return torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(-1)


def rows_by_length(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """Rows of like lengths: `[B, k]` -> the rows, int64, and their longest, of each group, the shortest first.

    Groups end at 32, 64, 128, ... events: of those of more than 32, less than half is padding.
    """
    longest = lengths.amax(dim=1).cpu()  # a GPU is waited for once, not for each group
    group = (longest.clamp(min=32) - 1).log2().floor()
    members = [(group == value).nonzero().squeeze(1) for value in group.unique()]
    return [(rows.to(lengths.device), max(1, int(longest[rows].max()))) for rows in members]


def align_recent(sequences: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Join k sequences on the embedding axis so that their most recent events share a position.

    Args:
        sequences: `[B, k, T, d]`.
        lengths: `[B, k]`.

    Returns:
        `[B, T, k d]`, oldest first, left-aligned, zeros where a sequence has no event, and the lengths `[B]`,
        each the longest of its row's k.
    """
    longest = lengths.amax(dim=1)
    shift = longest.unsqueeze(1) - lengths  # [B, k]
    source = torch.arange(sequences.shape[2], device=lengths.device) - shift.unsqueeze(2)  # [B, k, T]
    valid = (source >= 0) & (source < lengths.unsqueeze(2))
    index = source.clamp(min=0).unsqueeze(3).expand_as(sequences)
    aligned = torch.where(valid.unsqueeze(3), sequences.gather(2, index), 0)
    # Not transposed and flattened, which torch.export finds to depend on whether T is 1.
    parts = aligned.unbind(1)
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0], longest


def mean_of_events(sequences: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the valid positions, `[B, k, T, d]` and `[B, k]` -> `[B, k, d]`; zeros where there is none."""
    beyond = beyond_end(lengths, sequences.shape[2])
    total = sequences.masked_fill(beyond.unsqueeze(3), 0).sum(2)
    return total / lengths.clamp(min=1).unsqueeze(2)


def merge_by_recency(events: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Put the events of several behaviors into one sequence, by how many of their own came after.

    Args:
        events: `[B, b, T, d]`, oldest first, left-aligned.
        lengths: `[B, b]`.

    Returns:
        `[B, b T, d]`, oldest first, left-aligned, ending with the last event of each behavior, and the lengths `[B]`.
    """
    batch, num_behaviors, longest, dim = events.shape
    age = lengths.unsqueeze(2) - 1 - torch.arange(longest, device=lengths.device)  # [B, b, T]
    rank = torch.arange(num_behaviors, device=lengths.device).view(1, -1, 1) - age * num_behaviors
    # Padding comes last.
    order = rank.masked_fill(age < 0, num_behaviors).flatten(1).argsort(dim=1, stable=True)
    merged = events.reshape(batch, -1, dim).gather(1, order.unsqueeze(2).expand(-1, -1, dim))
    return merged, lengths.sum(1)
