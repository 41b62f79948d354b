"""DCN V2 (Wang et al., "DCN V2: Improved Deep & Cross Network", arXiv 2008.13535)."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.mlp import LogitLinear, linear, mlp
from cetnet.models.layers.tokens import DenseTokens

Structure = Literal["parallel", "stacked", "stacked_parallel", "crossnet_only"]


class DCNv2Config(FieldModelConfig):
    """Settings of DCNv2."""

    kind: Literal["dcnv2"] = "dcnv2"
    structure: Structure = Field(
        "parallel",
        description="`parallel`: cross network beside an MLP. `stacked`: the MLP reads the crosses. "
        "`stacked_parallel`: one MLP on the crosses, one on the input. `crossnet_only`: no MLP.",
    )
    num_cross_layers: int = Field(
        3, ge=1, description="Layers of the cross network: degree of the crosses - 1."
    )
    cross: Literal["full", "low_rank", "mixture"] = Field(
        "full",
        description="Weight of a cross: a full matrix, a product of two of `rank` columns, or a gated mixture "
        "of `num_experts` such products.",
    )
    rank: int = Field(32, gt=0, description="Rank of low_rank and mixture crosses.")
    num_experts: int = Field(4, gt=0, description="Experts of mixture crosses.")
    stacked_units: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="Hidden layers of the MLP on the crosses, where structure has one. Default: hidden_units.",
    )


class CrossNetV2(nn.Module):
    """Full-rank cross network, `[B, D]` -> `[B, D]`: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (eq. 1).

    torchrec has the same layer; three lines are cheaper than importing
    torchrec, which takes seconds, into modules that otherwise need only torch.
    """

    def __init__(self, num_features: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(num_features, num_features) for _ in range(num_layers))

    def forward(self, x0: Tensor) -> Tensor:
        """`[B, D]` -> `[B, D]`."""
        x = x0
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x


class LowRankCrossNet(nn.Module):
    """CrossNetV2 with W_l = U_l V_l^T of rank r, `[B, D]` -> `[B, D]` (eq. 2)."""

    def __init__(self, num_features: int, num_layers: int, rank: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(linear(num_features, rank, bias=False), linear(rank, num_features))
            for _ in range(num_layers)
        )

    def forward(self, x0: Tensor) -> Tensor:
        """`[B, D]` -> `[B, D]`."""
        x = x0
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x


class MixtureCrossNet(nn.Module):
    """Low-rank crosses by K experts, `[B, D]` -> `[B, D]` (eq. 3 and 4).

    x_{l+1} = sum_i softmax_i(g_i . x_l) E_i(x_l) + x_l,
    E_i(x) = x_0 * (U_i tanh(C_i tanh(V_i^T x)) + b). As in FuxiCTR, layers share the gates g, and the experts of
    a layer its bias b.
    """

    def __init__(self, num_features: int, num_layers: int, rank: int, num_experts: int) -> None:
        super().__init__()

        def weights(rows: int, columns: int) -> nn.Parameter:
            matrices = torch.empty(num_layers, num_experts, rows, columns)
            for matrix in matrices.flatten(0, 1):
                nn.init.xavier_normal_(matrix)
            return nn.Parameter(matrices)

        self.u, self.v, self.c = weights(num_features, rank), weights(num_features, rank), weights(rank, rank)
        self.biases = nn.Parameter(torch.zeros(num_layers, num_features))
        # With one expert the softmax is 1 whatever the gate says.
        self.gates = linear(num_features, num_experts, bias=False) if num_experts > 1 else None

    def forward(self, x0: Tensor) -> Tensor:
        """`[B, D]` -> `[B, D]`."""
        x = x0
        for u, v, c, bias in zip(self.u, self.v, self.c, self.biases, strict=True):
            hidden = torch.einsum("bd,kdr->kbr", x, v).tanh()
            hidden = torch.bmm(hidden, c.transpose(1, 2)).tanh()  # [K, B, r]
            if self.gates is not None:
                hidden = hidden * self.gates(x).softmax(dim=1).T.unsqueeze(2)
            experts = torch.cat(hidden.unbind(0), dim=1)  # [B, K r]
            # The gates add up to 1, so that b can be added after the sum over the experts.
            x = x0 * (F.linear(experts, u.transpose(0, 1).flatten(1)) + bias) + x
        return x


class DCNv2(Component):
    """A cross network, explicit crosses of bounded degree, with an MLP; histories enter as their means.

    The output embedding is what the final Linear reads: concat[cross, deep] if parallel, the last hidden
    layer if stacked, concat of the two last hidden layers if stacked_parallel, the crosses if crossnet_only.
    """

    Config = DCNv2Config

    def __init__(self, shape: InputShape, config: DCNv2Config) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        num_features = self.inputs.num_tokens * shape.embedding_dim
        self.crossnet = _crossnet(num_features, config)
        stacked_units = config.stacked_units or config.hidden_units
        self.stacked = self.parallel = None
        self.output_dim = num_features
        if config.structure.startswith("stacked"):
            self.stacked = mlp(
                num_features, stacked_units, config.activation, config.dropout, config.batch_norm
            )
            self.output_dim = stacked_units[-1]
        if config.structure.endswith("parallel"):
            self.parallel = config.mlp(num_features)
            self.output_dim += config.hidden_units[-1]
        self.logit = LogitLinear(self.output_dim)

    def forward(self, inputs: Inputs) -> Output:
        """Return the output embedding `[B, output_dim]` and the logit `[B]`."""
        x0 = self.inputs(inputs.tokens, inputs.dense).flatten(1)
        output = self.crossnet(x0)
        if self.stacked is not None:
            output = self.stacked(output)
        if self.parallel is not None:
            output = torch.cat([output, self.parallel(x0)], dim=1)
        return Output(output, self.logit(output))


def _crossnet(num_features: int, config: DCNv2Config) -> nn.Module:
    if config.cross == "low_rank":
        return LowRankCrossNet(num_features, config.num_cross_layers, config.rank)
    if config.cross == "mixture":
        return MixtureCrossNet(num_features, config.num_cross_layers, config.rank, config.num_experts)
    return CrossNetV2(num_features, config.num_cross_layers)
