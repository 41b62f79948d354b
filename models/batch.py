"""One batch of rows, on its way from the reader through the train pipeline to the model."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """`B` rows of this rank; the same `B` on every rank and every step.

    Attributes:
        sparse: ids of every id feature; keys in the schema's order, ids int64, lengths int32.
        dense: `[B, m]` float32, columns in the schema's order.
        label: `[B]` float32, 0 or 1.
        weight: `[B]` float32; 0 for the rows that pad the tail of an epoch, and for bad rows.
        row: `[B]` int64, the row's number in the split's files; -1 for padding and bad rows.
        teachers: `[B, teachers]` float32, their logits, 0 where `row` is -1; None without teachers.
        peers: `[B, N]` float32, logits of stale copies of the components; None without codistillation.
    """

    sparse: KeyedJaggedTensor
    dense: Tensor
    label: Tensor
    weight: Tensor
    row: Tensor
    teachers: Tensor | None = None
    peers: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Copy to a device."""
        return Batch(**{name: value.to(device, non_blocking=non_blocking) for name, value in self._present()})

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory, so that the copy to a GPU can overlap with computing."""
        return Batch(**{name: value.pin_memory() for name, value in self._present()})

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that a stream uses every tensor of the batch."""
        for _, value in self._present():
            value.record_stream(stream)

    def _present(self) -> list[tuple[str, Any]]:
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in values if value is not None]
