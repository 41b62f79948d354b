"""The seam for adding a model: what a component is given, and what it must return."""

from typing import ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class ComponentConfig(BaseModel):
    """Settings that every component has; each component's own `Config` extends it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="Name of the component, a key of `models.registry.COMPONENTS`.")
    embedding_dim: int = Field(32, gt=0, description="Size d of every embedding of this component.")
    embedding_std: float = Field(
        0.05,
        gt=0,
        description="Embeddings start from N(0, std). Far below 0.01, LayerNorm's eps drowns the signal.",
    )


class InputShape(NamedTuple):
    """Sizes of a component's inputs, known before any batch is read."""

    num_tokens: int
    num_sequences: int
    max_length: int
    num_dense: int
    embedding_dim: int


class Inputs(NamedTuple):
    """What a component sees: plain dense tensors.

    Attributes:
        tokens: `[B, n, d]`, one per categorical and multi-valued feature in the schema's order, then,
            only for components that pool histories, one per sequence (its mean; zeros if empty).
        sequences: `[B, k, T, d]`, oldest first, left-aligned, zeros beyond each length; k = 0 for
            components that pool histories.
        lengths: `[B, k]` int64, the number of valid positions of each sequence.
        dense: `[B, m]` float32.
    """

    tokens: Tensor
    sequences: Tensor
    lengths: Tensor
    dense: Tensor


class Component(nn.Module):
    """A CTR model that can stand alone or be one of an ensemble.

    A subclass sets `Config` and `reads_sequences`, builds its layers in `__init__(shape, config)`, sets
    `output_dim` there, and implements `forward`.
    """

    Config: ClassVar[type[ComponentConfig]]
    reads_sequences: ClassVar[bool] = False
    """Whether it reads histories position by position; otherwise it gets their means as tokens."""

    output_dim: int
    """Size D of the output embedding, known once constructed: the fusion head needs it."""

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return the output embedding `[B, D]` and the logit `[B]` (no sigmoid)."""
        raise NotImplementedError
