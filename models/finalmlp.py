"""FinalMLP (Mao et al., "FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction", arXiv 2304.00902)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cetnet.models.component import Component, ExtraTable, Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.mlp import BilinearFusion, linear, mlp
from cetnet.models.layers.tokens import DenseTokens
from cetnet.models.schema import Feature


class FinalMLPConfig(FieldModelConfig):
    """Settings of FinalMLP; hidden_units, dropout and batch_norm are the first stream's."""

    kind: Literal["finalmlp"] = "finalmlp"
    hidden_units2: tuple[int, ...] = Field(
        (512, 256, 128), min_length=1, description="Sizes of the hidden layers of the second stream."
    )
    dropout2: float = Field(0.0, ge=0, lt=1, description="Dropout of the second stream.")
    batch_norm2: bool = Field(False, description="BatchNorm in the second stream.")
    num_heads: int = Field(1, gt=0, description="Heads of the bilinear fusion; divides both last layers.")
    feature_selection: bool = Field(
        True, description="Gate the input of each stream by a context of its own."
    )
    selection_units: tuple[int, ...] = Field((400,), description="Hidden layers of each gate.")
    context1: tuple[str, ...] = Field(
        (), description="Features that gate the first stream; none: a learned vector does."
    )
    context2: tuple[str, ...] = Field((), description="Features that gate the second stream; likewise.")

    @model_validator(mode="after")
    def _check(self) -> "FinalMLPConfig":
        if self.hidden_units[-1] % self.num_heads or self.hidden_units2[-1] % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must divide the last layers {self.hidden_units[-1]} and "
                f"{self.hidden_units2[-1]}"
            )
        if both := set(self.context1) & set(self.context2):
            raise ValueError(f"{min(both)!r} can be the context of one stream only")
        return self


class FeatureGate(nn.Module):
    """Weights 2 sigmoid(MLP(context)) of all features for one stream, `[B, D]` (eq. 6 to 9).

    The context is the embeddings of its features, which have tables of their own, x_i v_i for dense ones; or, with
    none, a learned vector. FuxiCTR starts that from zero, where a ReLU with zero bias lets no gradient through and
    the gate never learns; here it starts from N(0, 1).
    """

    def __init__(
        self,
        context: Sequence[str],
        extra: slice,
        num_features: int,
        shape: InputShape,
        hidden_units: Sequence[int],
    ) -> None:
        super().__init__()
        d = shape.embedding_dim
        self.extra = extra
        self.columns = [shape.dense_names.index(name) for name in context if name in shape.dense_names]
        self.vector = None if context else nn.Parameter(torch.randn(1, d))
        self.dense = (
            nn.Parameter(torch.randn(len(self.columns), d) * (2 / (1 + d)) ** 0.5) if self.columns else None
        )
        width = max(1, len(context)) * d
        self.mlp = mlp(width, hidden_units, "relu")
        self.mlp.append(linear((width, *hidden_units)[-1], num_features))

    def forward(self, inputs: Inputs) -> Tensor:
        """`Inputs` -> `[B, D]`."""
        if self.vector is not None:
            return 2 * self.mlp(self.vector).sigmoid().expand(inputs.dense.shape[0], -1)
        context = [inputs.extra[:, self.extra]]
        if self.dense is not None:
            context.append((inputs.dense[:, self.columns].unsqueeze(2) * self.dense).flatten(1))
        return 2 * self.mlp(torch.cat(context, dim=1)).sigmoid()


class FinalMLP(Component):
    """Two MLPs, each on its own selection of the features, fused bilinearly; histories enter as their means.

    The output embedding is concat[x, y] of the two streams' last hidden layers.
    """

    Config = FinalMLPConfig

    @classmethod
    def extra_tables(cls, config: FinalMLPConfig, features: Sequence[Feature]) -> list[ExtraTable]:
        """A table for each context feature that has ids; raises ValueError for an unknown one."""
        if not config.feature_selection:
            return []
        kinds = {feature.name: feature.kind for feature in features}
        context = (*config.context1, *config.context2)
        if unknown := [name for name in context if name not in kinds]:
            raise ValueError(f"finalmlp: context {unknown[0]!r} is no feature; there are {', '.join(kinds)}")
        return [
            ExtraTable(name, config.embedding_dim, pooling="mean")
            for name in context
            if kinds[name] != "dense"
        ]

    def __init__(self, shape: InputShape, config: FinalMLPConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        num_features = self.inputs.num_tokens * shape.embedding_dim
        self.gate1 = self.gate2 = None
        if config.feature_selection:
            split = shape.embedding_dim * sum(name not in shape.dense_names for name in config.context1)
            self.gate1 = FeatureGate(
                config.context1, slice(0, split), num_features, shape, config.selection_units
            )
            self.gate2 = FeatureGate(
                config.context2, slice(split, None), num_features, shape, config.selection_units
            )
        self.mlp1 = config.mlp(num_features)
        self.mlp2 = mlp(
            num_features, config.hidden_units2, config.activation, config.dropout2, config.batch_norm2
        )
        dims = config.hidden_units[-1], config.hidden_units2[-1]
        self.fusion = BilinearFusion(*dims, config.num_heads)
        self.output_dim = sum(dims)

    def forward(self, inputs: Inputs) -> Output:
        """Return concat[x, y] `[B, output_dim]` and the logit `[B]`."""
        features = self.inputs(inputs.tokens, inputs.dense).flatten(1)
        x = self.mlp1(features if self.gate1 is None else features * self.gate1(inputs))
        y = self.mlp2(features if self.gate2 is None else features * self.gate2(inputs))
        xy = torch.cat([x, y], dim=1)
        return Output(xy, self.fusion(xy))
