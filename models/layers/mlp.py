"""Multi-layer perceptrons and what they are made of."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "silu", "sigmoid", "tanh", "prelu", "dice"]


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block in which operations on tensors of this one's device have the types that they are given.

    While a model is exported there is no autocast; the block would be a program of its own in the program.
    """
    if torch.compiler.is_exporting():
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """`nn.Linear` that starts from xavier_normal weights and zero bias."""
    layer = nn.Linear(in_features, out_features, bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over `[rows, features]` that takes a single row, or none, in training as well.

    Such a batch has no variance to normalize by: it is normalized by the running statistics, which it
    leaves as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, features]` -> `[rows, features]`."""
        if not self.training or len(x) > 1:
            return super().forward(x)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class Dice(nn.Module):
    """p x + alpha (1 - p) x with p = sigmoid(BN(x)), `[rows, features]` -> the same.

    Deep Interest Network, arXiv 1706.06978, eq. 3. As in FuxiCTR, BN has no affine map, eps 1e-9 and momentum
    0.01, and alpha, one per feature, starts from 0.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.norm = BatchNorm(num_features, eps=1e-9, momentum=0.01, affine=False)
        self.alpha = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, features]` -> `[rows, features]`."""
        p = self.norm(x).sigmoid()
        return p * x + self.alpha * (1 - p) * x


def activation_layer(name: Activation, num_features: int) -> nn.Module:
    """The activation called `name`, for `[rows, num_features]`."""
    if name == "dice":
        return Dice(num_features)
    if name == "prelu":
        return nn.PReLU(num_features, init=0.1)
    return {"relu": nn.ReLU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}[name]()


def mlp(
    in_features: int,
    hidden_units: Sequence[int],
    activation: Activation = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Hidden layers, `[rows, in_features]` -> `[rows, hidden_units[-1]]`; the identity if there are none.

    Each is Linear, BatchNorm if asked for, activation, dropout.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((in_features, *hidden_units)):
        layers.append(linear(fan_in, fan_out))
        if batch_norm:
            layers.append(BatchNorm(fan_out))
        layers.append(activation_layer(activation, fan_out))
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class LogitLinear(nn.Linear):
    """Affine map to one logit, `[B, in_features]` -> `[B]`.

    Computes in the dtype of its weights even under autocast: bfloat16 has three digits, which would tie
    predictions and blur NE.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 1)
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_features]` of any floating dtype -> `[B]`."""
        with without_autocast(x):
            return super().forward(x.to(self.weight.dtype)).squeeze(-1)


def start_at(module: nn.Module, logit: float) -> None:
    """Set the bias of the first `LogitLinear` inside a module, if there is one."""
    heads = (part for part in module.modules() if isinstance(part, LogitLinear))
    if (head := next(heads, None)) is not None:
        nn.init.constant_(head.bias, logit)


class BilinearFusion(nn.Module):
    """w_x x + w_y y + sum_h x_h^T W_h y_h on `[x, y]`, `[B, x_dim + y_dim]` -> logit `[B]`.

    FinalMLP, arXiv 2304.00902, eq. 12 to 14: x and y are cut into `num_heads` parts each. Computes in the dtype
    of its weights even under autocast, as `LogitLinear` does.
    """

    def __init__(self, x_dim: int, y_dim: int, num_heads: int) -> None:
        super().__init__()
        self.dims, self.num_heads = (x_dim, y_dim), num_heads
        self.x, self.y = LogitLinear(x_dim), LogitLinear(y_dim)
        weight = torch.empty(num_heads * (x_dim // num_heads) * (y_dim // num_heads), 1)
        self.weight = nn.Parameter(
            nn.init.xavier_normal_(weight).view(num_heads, x_dim // num_heads, y_dim // num_heads)
        )

    def forward(self, xy: Tensor) -> Tensor:
        """`[B, x_dim + y_dim]` of any floating dtype -> `[B]`."""
        with without_autocast(xy):
            x, y = xy.to(self.weight.dtype).split(self.dims, dim=1)
            # [h, B, dim / h]
            x_heads, y_heads = (part.unflatten(1, (self.num_heads, -1)).transpose(0, 1) for part in (x, y))
            bilinear = (torch.bmm(x_heads, self.weight) * y_heads).sum((0, 2))
            return self.x(x) + self.y(y) + bilinear
