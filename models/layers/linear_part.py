"""The linear part of FM, Wide & Deep, DeepFM and xDeepFM: a weight of its own for every id and every number."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cetnet.models.component import Component, ExtraTable, Inputs
from cetnet.models.component_config import ComponentConfig
from cetnet.models.schema import Feature


class ComponentWithLinearPart(Component):
    """A component that looks up a single weight for each id, beside its embeddings."""

    @classmethod
    def extra_tables(cls, config: ComponentConfig, features: Sequence[Feature]) -> list[ExtraTable]:  # noqa: ARG003
        """A table of single weights for each feature of ids; those of a list are added up.

        A history does not share its target's weights: having bought an item says nothing of the item's own rate.
        """
        return [ExtraTable(f.name, dim=1, pooling="sum") for f in features if f.kind != "dense"]


class LinearPart(nn.Module):
    """Sum of the weights of all ids and of w_i x_i over the dense features: `Inputs` -> `[B]`, float32.

    The weights of ids are `Inputs.extra`, looked up in the tables of `ComponentWithLinearPart`.
    """

    def __init__(self, num_dense: int) -> None:
        super().__init__()
        self.dense = nn.Parameter(torch.empty(1, num_dense)) if num_dense else None
        if self.dense is not None:
            nn.init.xavier_normal_(self.dense)

    def forward(self, inputs: Inputs) -> Tensor:
        """`Inputs` -> `[B]`."""
        total = inputs.extra.sum(1)
        return total if self.dense is None else total + (inputs.dense * self.dense).sum(1)
