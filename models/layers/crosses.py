"""Feature crosses: layers that multiply features with each other."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cetnet.models.layers.mlp import linear


class CrossNet(nn.Module):
    """Cross network with a vector per layer, `[B, D]` -> `[B, D]`: x_{l+1} = x_0 (w_l . x_l) + b_l + x_l.

    Deep & Cross Network, arXiv 1708.05123, eq. 3.
    """

    def __init__(self, num_features: int, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.ModuleList(linear(num_features, 1, bias=False) for _ in range(num_layers))
        self.biases = nn.Parameter(torch.zeros(num_layers, num_features))

    def forward(self, x0: Tensor) -> Tensor:
        """`[B, D]` -> `[B, D]`."""
        x = x0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = x0 * weight(x) + bias + x
        return x


class CrossNetV2(nn.Module):
    """Full-rank cross network, `[B, D]` -> `[B, D]`: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l.

    DCN V2, arXiv 2008.13535, eq. 1. torchrec has the same layer; three lines are cheaper than importing
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
    """CrossNetV2 with W_l = U_l V_l^T of rank r, `[B, D]` -> `[B, D]` (DCN V2, eq. 2)."""

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
    """Low-rank crosses by K experts, `[B, D]` -> `[B, D]` (DCN V2, eq. 3 and 4).

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
            hidden = torch.einsum("bd,kdr->bkr", x, v).tanh()
            hidden = torch.einsum("bkr,ksr->bks", hidden, c).tanh()
            if self.gates is not None:
                hidden = hidden * self.gates(x).softmax(dim=1).unsqueeze(2)
            # The gates add up to 1, so that b can be added after the sum over the experts.
            x = x0 * (torch.einsum("bkr,kdr->bd", hidden, u) + bias) + x
        return x


class CompressedInteraction(nn.Module):
    """CIN, `[B, F, d]` -> `[B, sum of units]`: vector-wise crosses, summed over d.

    xDeepFM, arXiv 1803.05170, eq. 6 and 8: X^k_h = sum_ij W^{k,h}_ij (X^{k-1}_i * X^0_j) + b^k_h. As in FuxiCTR
    there is no activation between the layers, and no layer's maps are split.
    """

    def __init__(self, num_fields: int, units: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        width = num_fields
        for unit in units:
            self.layers.append(linear(num_fields * width, unit))
            width = unit

    def forward(self, x0: Tensor) -> Tensor:
        """`[B, F, d]` -> `[B, sum of units]`."""
        fields = x0.transpose(1, 2)  # [B, d, F]
        x, pooled = fields, []
        for layer in self.layers:
            products = (x.unsqueeze(3) * fields.unsqueeze(2)).flatten(2)  # [B, d, H F]
            x = layer(products)
            pooled.append(x.sum(1))
        return torch.cat(pooled, dim=1)
