"""Random inputs for component tests."""

import torch

from models.component import Inputs, InputShape


def random_inputs(
    shape: InputShape, batch_size: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Inputs:
    """Inputs of unit scale; the lengths take every value from 0 to `max_length`, zeros beyond them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype)

    k, length, dim = shape.num_sequences, shape.max_length, shape.embedding_dim
    lengths = torch.randint(0, length + 1, (batch_size, k), generator=generator)
    valid = torch.arange(length) < lengths.unsqueeze(2)
    return Inputs(
        tokens=normal(batch_size, shape.num_tokens, dim),
        sequences=normal(batch_size, k, length, dim) * valid.unsqueeze(3),
        lengths=lengths,
        dense=normal(batch_size, shape.num_dense),
    )
