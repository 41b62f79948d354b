"""One batch of rows, on its way from the reader through the train pipeline to the model."""

from dataclasses import dataclass, fields

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
    """

    sparse: KeyedJaggedTensor
    dense: Tensor
    label: Tensor
    weight: Tensor
    row: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Copy to a device."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory, so that the copy to a GPU can overlap with computing."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that a stream uses every tensor of the batch."""
        for field in fields(self):
            getattr(self, field.name).record_stream(stream)
