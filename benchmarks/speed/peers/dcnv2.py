"""DCNv2 in plain PyTorch: what the contenders (a) and (b) train, and whose multiplications are counted.

As `benchmarks/speed/peers/dcnv2.yaml`: 3 full crosses beside an MLP of 3 x 400 on 39 embeddings of 16.
"""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

DIM, NUM_CROSSES, HIDDEN = 16, 3, (400, 400, 400)


class DenseDCNv2(nn.Module):
    """Everything but the tables: looked-up rows `[B, num_ids * DIM]` and numbers `[B, num_dense]` -> logits `[B]`."""

    def __init__(self, num_ids: int, num_dense: int) -> None:
        super().__init__()
        self.fields = nn.Parameter(torch.randn(num_dense, DIM) * 0.3)
        width = (num_ids + num_dense) * DIM
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(NUM_CROSSES))
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip((width, *HIDDEN), HIDDEN, strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.deep = nn.Sequential(*layers)
        self.logit = nn.Linear(width + HIDDEN[-1], 1)

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        """Logits of a batch."""
        x0 = torch.cat([rows, (dense.unsqueeze(2) * self.fields).flatten(1)], dim=1)
        x = x0
        for cross in self.crosses:
            x = x0 * cross(x) + x
        return self.logit(torch.cat([x, self.deep(x0)], dim=1)).squeeze(1)


def flops_per_sample(num_ids: int, num_dense: int, batch_size: int = 64) -> float:
    """Floating-point operations of the matrix products in a forward and a backward pass, per row."""
    model = DenseDCNv2(num_ids, num_dense)
    rows = torch.zeros(batch_size, num_ids * DIM, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(rows, torch.zeros(batch_size, num_dense)).sum().backward()
    return counter.get_total_flops() / batch_size
