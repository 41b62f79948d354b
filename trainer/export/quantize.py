"""Tables in fewer bytes: float16, or int8 with a scale for each row. Plain tensors, turned back after the lookup."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cetnet.models.served import Rows, Served
from cetnet.trainer.errors import UserError

Stored = Literal["float32", "float16", "int8"]
NARROW = 8
"""Tables of fewer numbers a row are float16 where others are int8, whose scale would be a large part of theirs."""

_PIECE = 1 << 18  # rows that are converted at a time
_LEVELS = 127


def store_tables(served: Served, stored: Stored) -> None:
    """Replace a model's tables by ones of that form; those that it was made of stay as they are.

    int8 is symmetric: a row is round(w / s) times s, s = max |w| / 127 in float16; so it takes dim + 2 bytes.

    Raises:
        UserError: a number is beyond float16.
    """
    assert stored in get_args(Stored)
    for rows in served.modules():
        if isinstance(rows, Rows):
            weight, dim = rows.weight.detach(), rows.dim
            scale = None
            if stored == "float32":
                weight = weight if weight.shape[1] == dim else weight[:, :dim].clone()
            elif stored == "float16" or dim < NARROW:
                weight = _converted(weight, dim, torch.float16)
                if weight.isinf().any():
                    raise UserError(
                        "a table has numbers beyond float16 (65,504); export it without --int8 and --fp16"
                    )
            else:
                weight, scale = _int8(weight, dim)
            rows.weight = nn.Parameter(weight, requires_grad=False)
            rows.scale = None if scale is None else nn.Parameter(scale, requires_grad=False)


def table_bytes(served: Served) -> int:
    """Bytes of all tables."""
    tables = [rows for rows in served.modules() if isinstance(rows, Rows)]
    return sum(parameter.nbytes for rows in tables for parameter in rows.parameters())


def table_numbers(served: Served) -> int:
    """How many numbers all tables have."""
    return sum(len(rows.weight) * rows.dim for rows in served.modules() if isinstance(rows, Rows))


def _converted(weight: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    found = torch.empty(len(weight), dim, dtype=dtype)
    for start in range(0, len(weight), _PIECE):
        found[start : start + _PIECE] = weight[start : start + _PIECE, :dim]
    return found


def _int8(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Numbers `[rows, dim]` int8 and scales `[rows, 1]` float16."""
    numbers = torch.empty(len(weight), dim, dtype=torch.int8)
    scales = torch.empty(len(weight), 1, dtype=torch.float16)
    for start in range(0, len(weight), _PIECE):
        piece = weight[start : start + _PIECE, :dim]
        scale = (piece.abs().amax(dim=1, keepdim=True) / _LEVELS).half()
        if scale.isinf().any():
            raise UserError("a table has numbers beyond 8 million; export it without --int8")
        # By the scale as it is kept. Where that is 0, the row is, next to float16's smallest number.
        levels = (piece / scale.float()).nan_to_num(0, 0, 0).round().clamp(-_LEVELS, _LEVELS)
        numbers[start : start + _PIECE], scales[start : start + _PIECE] = levels, scale
    return numbers, scales
