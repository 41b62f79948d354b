"""The interface of a model: what a component is given, and what it must return."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from cetnet.models.component_config import ComponentConfig
from cetnet.models.layers.mlp import start_at
from cetnet.models.schema import Feature, Schema


class Behavior(NamedTuple):
    """Sequences that are columns of one list of events, hence aligned position by position.

    Attributes:
        sequences: their indices among the k sequences.
        targets: for each, the index of the first categorical token that looks up the same table: the candidate's
            value of what the sequence holds of past events. None if the candidate has none.
    """

    sequences: tuple[int, ...]
    targets: tuple[int | None, ...]


class InputShape(NamedTuple):
    """Sizes of a component's inputs, known before any batch is read."""

    num_tokens: int
    num_sequences: int
    max_length: int
    num_dense: int
    embedding_dim: int
    behaviors: tuple[Behavior, ...] = ()
    """Every sequence is in exactly one."""
    dense_names: tuple[str, ...] = ()
    """Names of the dense features, for components that select some."""
    num_extra: int = 0
    """Width of `Inputs.extra`."""


class Inputs(NamedTuple):
    """What a component sees: plain dense tensors, not to be altered in place.

    Attributes:
        tokens: `[B, n, d]`, one per categorical and multi-valued feature in the schema's order, then,
            only for components that pool histories, one per sequence (its mean; zeros if empty).
        sequences: `[B, k, T, d]`, oldest first, left-aligned, zeros beyond each length; k = 0 for
            components that pool histories. T is at most `max_length`; it may differ between batches.
        lengths: `[B, k]` int64, the number of valid positions of each sequence.
        dense: `[B, m]` float32.
        extra: `[B, e]`, what `Component.extra_tables` gave, side by side.

    Tokens and sequences are bfloat16 if `training.precision` is bf16; the rest is float32.
    """

    tokens: Tensor
    sequences: Tensor
    lengths: Tensor
    dense: Tensor
    extra: Tensor


class Output(NamedTuple):
    """What a component returns.

    Attributes:
        embedding: the output embedding `[B, output_dim]` that the fusion joins.
        logit: `[B]`, no sigmoid.
        auxiliary: `[B]`, a loss of the component's own that is added to each row's, or None.
    """

    embedding: Tensor
    logit: Tensor
    auxiliary: Tensor | None = None


class ExtraTable(NamedTuple):
    """A table beside the embeddings, for one feature: the linear part of a model, say."""

    feature: str
    dim: int
    pooling: Literal["mean", "sum"]


class Component(nn.Module):
    """A CTR model that can stand alone or be one of an ensemble.

    A subclass sets `Config` and `reads_sequences`, builds its layers in `__init__(shape, config)`, sets
    `output_dim` there, and implements `forward`.
    """

    Config: ClassVar[type[ComponentConfig]]
    reads_sequences: ClassVar[bool] = False
    """Whether it reads histories position by position; otherwise it gets their means as tokens."""

    rows_apart: bool = False
    """Whether a row's output depends on that row alone, and it pays to call the component for rows of like lengths
    apart, because what it does with a history costs more than in proportion to the longest."""

    output_dim: int
    """Size D of the output embedding, known once constructed: the fusion head needs it."""

    @classmethod
    def extra_tables(cls, config: Any, features: Sequence[Feature]) -> list[ExtraTable]:  # noqa: ARG003
        """Tables that the component has beside its embeddings; `features` are the schema's, of every kind."""
        return []

    def start_at(self, logit: float) -> None:
        """Have the untrained predictions lie around `logit`: the bias of the first of its `LogitLinear`s, which are
        added up. A component that has none, and doesn't override this, starts around 0."""
        start_at(self, logit)

    def forward(self, inputs: Inputs) -> Output:
        """Return the output embedding `[B, D]`, the logit `[B]`, and an auxiliary loss if there is one."""
        raise NotImplementedError


def input_shape(schema: Schema, cls: type[Component], config: ComponentConfig) -> InputShape:
    """What a component of this class is given on data of this schema."""
    tokens = schema.of_kind("categorical", "multi_valued")
    histories = schema.of_kind("sequence")
    sequences = histories if cls.reads_sequences else []
    token_of = {
        feature.table: i for i, feature in reversed(list(enumerate(tokens))) if feature.kind == "categorical"
    }
    behaviors: dict[str | None, list[int]] = {}
    for i, feature in enumerate(sequences):
        behaviors.setdefault(feature.behavior, []).append(i)
    return InputShape(
        num_tokens=len(tokens) + len(histories) - len(sequences),
        num_sequences=len(sequences),
        max_length=max((feature.max_length or 0 for feature in sequences), default=0),
        num_dense=len(schema.dense_features),
        embedding_dim=config.embedding_dim,
        behaviors=tuple(
            Behavior(tuple(members), tuple(token_of.get(sequences[i].table) for i in members))
            for members in behaviors.values()
        ),
        dense_names=tuple(feature.name for feature in schema.dense_features),
        num_extra=sum(table.dim for table in cls.extra_tables(config, schema.features)),
    )
