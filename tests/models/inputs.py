"""Schemas, shapes and random inputs for component tests."""

import torch

from cetnet.models.component import Inputs, InputShape, input_shape
from cetnet.models.component_config import ComponentConfig
from cetnet.models.registry import component_class
from cetnet.models.schema import Feature, Schema


def small_schema(
    num_tokens: int = 3, num_sequences: int = 2, num_dense: int = 3, separate: int = 2
) -> Schema:
    """Categorical `c0, c1, ...`, sequences `s0, s1, ...` of c0's, c1's ... tables, and dense `x0, x1, ...`.

    The first `separate` sequences are each a behavior of its own, further ones are one.
    """

    def behavior(i: int) -> str | None:
        return f"behavior {i}" if i < separate else None

    features = [
        *(Feature(name=f"c{i}", kind="categorical") for i in range(num_tokens)),
        *(
            Feature(
                name=f"s{i}", kind="sequence", table=f"c{i % num_tokens}", max_length=5, behavior=behavior(i)
            )
            for i in range(num_sequences)
        ),
        *(Feature(name=f"x{i}", kind="dense") for i in range(num_dense)),
    ]
    return Schema(label="label", tables={f"c{i}": 10 for i in range(num_tokens)}, features=tuple(features))


def small_shape(config: ComponentConfig, schema: Schema | None = None) -> InputShape:
    """What the component of this configuration is given on `schema`, by default a `small_schema()`."""
    return input_shape(schema or small_schema(), component_class(config.kind), config)


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
        extra=normal(batch_size, shape.num_extra),
    )
