"""A module with the inputs of a served model, small enough to be compiled in a test."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as fx_config

ROWS, LONGEST = 11, 6


class Toy(nn.Module):
    """Two outputs of a table that all ids look up; unknown ids are row 0, -1 is nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.linear = nn.Embedding(ROWS, 4), nn.Linear(4 * 4 + 2, 2)

    def rows(self, ids: Tensor) -> Tensor:
        return self.table(torch.where((ids >= 0) & (ids < ROWS), ids, 0))

    def forward(self, dense: Tensor, categorical: Tensor, multi_valued: Tensor, sequences: Tensor) -> Tensor:
        """As `Served.forward`, `[2, B]`."""
        found = [dense, self.rows(categorical).flatten(1)]
        for lists in (multi_valued, sequences):
            there = (lists != -1).unsqueeze(3)
            found.append(((self.rows(lists) * there).sum(2) / there.sum(2).clamp(min=1)).flatten(1))
        return self.linear(torch.cat(found, dim=1)).sigmoid().T


def inputs(rows: int, values: int, events: int, empty: bool = False) -> dict[str, Tensor]:
    """Inputs of some sizes: ids unknown, negative and beyond 2^53 among them, lists of any length or all empty."""
    generator = torch.Generator().manual_seed(rows * 100 + values * 10 + events)
    odd = torch.tensor([2**62, -(2**63), -7, ROWS, 2**63 - 1])

    def ids(*shape: int) -> Tensor:
        drawn = torch.randint(0, ROWS, shape, generator=generator)
        return torch.where(
            torch.rand(shape, generator=generator) < 0.2,
            odd[torch.randint(0, len(odd), shape, generator=generator)],
            drawn,
        )

    def lists(features: int, longest: int) -> Tensor:
        lengths = torch.randint(0, 1 if empty else longest + 1, (rows, features, 1), generator=generator)
        return torch.where(torch.arange(longest) < lengths, ids(rows, features, longest), -1)

    return {
        "dense": torch.randn(rows, 2, generator=generator),
        "categorical": ids(rows, 1),
        "multi_valued": lists(1, values),
        "sequences": lists(2, events),
    }


def program(module: nn.Module) -> ExportedProgram:
    """The module exported as a served model is."""
    batch, values, events = Dim("batch", min=1), Dim("values", min=1), Dim("events", min=1, max=LONGEST)
    shapes = {
        "dense": {0: batch},
        "categorical": {0: batch},
        "multi_valued": {0: batch, 2: values},
        "sequences": {0: batch, 2: events},
    }
    with fx_config.patch(backed_size_oblivious=True), torch.no_grad():
        return torch.export.export(module.eval(), (), inputs(2, 2, 2), dynamic_shapes=shapes, strict=False)


SIZES = [(1, 1, 1), (7, 2, 3), (64, 3, LONGEST), (3, 40, 1)]
