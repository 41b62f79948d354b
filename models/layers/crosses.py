"""Feature crosses: layers that multiply features with each other."""

from torch import Tensor, nn

from models.layers.mlp import linear


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
