"""Numerical faults: a step whose loss or gradient isn't finite changes no table and no parameter, on any rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer, OptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from cetnet.models.cetnet import Predictions
from cetnet.models.component import Inputs, Output
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import on_every_rank

_IN_A_ROW = 10
"""So many steps left out one after the other are no single rows any more."""

_SHOWN = 5

REMEDY = (
    "Lower optimizer.dense.lr or optimizer.sparse.lr, set optimizer.clip_norm, add optimizer.warmup_steps, or look "
    "at the data"
)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a step, the same on every rank.

    Attributes:
        what: component, quantity and rows, in words.
        num_rows: rows in the step, over all ranks.
        undone: whether the step has changed nothing.
    """

    what: str
    num_rows: int
    undone: bool


class GuardedOptimizer(OptimizerWrapper):
    """An optimizer that doesn't step after a loss or gradient that isn't finite; nor do the tables' fused ones.

    A gate stands between the tables and the components. All gradients of the looked-up rows meet there in the
    backward pass, before any table sees its own: if one of them or the loss isn't finite on any rank, they become
    zeros on all, for which the fused sgd, adagrad and rowwise_adagrad leave everything as it is. The ranks agree
    by an all-reduce of one number that stays on the device: a GPU is waited for once, before the dense optimizer.

    Args:
        optimizer: of the whole model.
        model: the sharded CETNet.
    """

    def __init__(self, optimizer: KeyedOptimizer, model: DistributedModelParallel) -> None:
        super().__init__(optimizer)
        named = in_backward_optimizer_filter(model.named_parameters())
        self._dense: dict[str, nn.Parameter] = {name: p for name, p in named if p.requires_grad}
        self._fused = bool(model.fused_optimizer.params)
        self._components = list(model.module.towers)
        # Batch normalisation moves its own in the forward pass; the others are kept with them.
        self._buffers = [
            b for module in (model.module.towers, model.module.objective) for b in module.buffers()
        ]
        self._before: list[Tensor] = []
        self._outputs: list[Output] = []
        self._predictions: Predictions | None = None
        self._gradients: Sequence[Tensor | None] = ()
        self._bad: Tensor | None = None  # [1], not 0: the loss or a gradient of the tables, on any rank
        model.module.towers.on_inputs = self._gate
        model.module.objective.register_forward_hook(self._after_forward)

    def step(self, closure: Any = None) -> None:
        """Step, unless something isn't finite: then `fault` tells what."""
        if self._bad is None:  # no gradient goes to a table
            self._judge(())
        assert self._bad is not None
        # DDP has averaged them: every rank finds the same.
        bad_dense = ~_finite([p.grad for p in self._dense.values()])
        if not torch.cat([self._bad.bool(), bad_dense]).any():
            super().step(closure)
            self._forget()
            return
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    def fault(self, group: dist.ProcessGroup) -> Fault | None:
        """What kept the last step from being made, None if nothing did; a collective of `group` if something did."""
        if self._bad is None:
            return None
        assert self._predictions is not None
        mine = (self._found(), int((self._predictions.row >= 0).sum()))
        all_ranks = on_every_rank(lambda: mine, group)
        rows: dict[str, list[int]] = {}
        for found, _ in all_ranks:
            for what, places in found.items():
                rows.setdefault(what, []).extend(places)
        named = [_in_words(what, sorted(places)) for what, places in rows.items()]
        what = "; ".join(named[:_SHOWN]) or "the norm of a gradient is beyond 1e19"
        fault = Fault(what, sum(count for _, count in all_ranks), undone=bool(self._bad) or not self._fused)
        self._forget()
        return fault

    def _forget(self) -> None:
        self._before, self._outputs, self._predictions, self._gradients = [], [], None, ()
        self._bad = None

    def _gate(self, inputs: list[Inputs]) -> list[Inputs]:
        if not torch.is_grad_enabled():
            return inputs
        self._before = [buffer.clone() for buffer in self._buffers]
        gated = iter(_Gate.apply(self, *(tensor for each in inputs for tensor in _looked_up(each))))
        return [
            each._replace(tokens=next(gated), sequences=next(gated), extra=next(gated)) for each in inputs
        ]

    def _after_forward(self, _: nn.Module, args: tuple, result: tuple[Tensor, Predictions]) -> None:
        if torch.is_grad_enabled():
            self._outputs, self._predictions = args[0], result[1]

    def _judge(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Gradients of the looked-up rows -> the same, or zeros."""
        assert self._predictions is not None
        self._gradients = gradients
        self._bad = (~_finite([self._predictions.loss, *gradients])).float()
        dist.all_reduce(self._bad, dist.ReduceOp.MAX)
        if self._bad.device.type == "cpu" and not self._bad:  # a GPU would be waited for
            return gradients
        return [None if g is None else torch.where(self._bad > 0, 0, g) for g in gradients]

    def _found(self) -> dict[str, list[int]]:
        """What isn't finite on this rank, the first cause only, and the rows of the split where."""
        assert self._predictions is not None
        predictions, names = self._predictions, self._components
        causes: list[dict[str, Sequence[Tensor | None]]] = [
            {
                f"the output of component {name!r}": output
                for name, output in zip(names, self._outputs, strict=True)
            },
            {"the fused logit": [predictions.logits[0]]},
            {
                f"the gradient of component {name!r} by its embeddings": self._gradients[3 * i : 3 * i + 3]
                for i, name in enumerate(names)
            },
        ]
        for cause in causes:
            rows = {what: _rows(tensors, predictions.row) for what, tensors in cause.items()}
            if found := {what: places for what, places in rows.items() if places}:
                return found
        if not torch.isfinite(predictions.loss):
            return {"the loss": []}
        if self._bad:  # elsewhere; what DDP averaged is NaN here too
            return {}
        return {f"the gradient of {name}": [] for name, p in self._dense.items() if not _finite([p.grad])}


class _Gate(torch.autograd.Function):
    """The identity, whose gradients pass by a guard, all at once."""

    @staticmethod
    def forward(ctx: Any, guard: GuardedOptimizer, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.guard = guard
        ctx.set_materialize_grads(False)
        return tensors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.guard._judge(gradients))


def _looked_up(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    return inputs.tokens, inputs.sequences, inputs.extra


def _finite(tensors: Sequence[Tensor | None]) -> Tensor:
    """Whether all are finite, `[1]` bool; by their norm, the fastest: what is beyond 1e19 counts as infinite too."""
    norm = nn.utils.get_total_norm([tensor for tensor in tensors if tensor is not None])
    return torch.isfinite(norm).reshape(1)


def _rows(tensors: Sequence[Tensor | None], row: Tensor) -> list[int]:
    """Those of the rows `[B]` in which one of the tensors, `[B, ...]`, isn't finite; -1: padding, skipped rows."""
    bad = torch.zeros_like(row, dtype=torch.bool)
    for tensor in tensors:
        if tensor is not None:
            bad |= ~torch.isfinite(tensor.detach()).reshape(len(row), -1).all(1)
    places: list[int] = row[bad].tolist()
    return places


def _in_words(what: str, rows: list[int]) -> str:
    if not rows:
        return f"{what} is NaN or infinite"
    shown = ", ".join("padding or a skipped row" if row < 0 else str(row) for row in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{what} is NaN or infinite in row{'s' * (len(rows) > 1)} {shown}{more}"


class FaultPolicy:
    """What a run does about faults: `training.nonfinite`.

    Args:
        skip: leave a step out that has a fault, instead of stopping the run.
        split: the split that is trained on.
    """

    def __init__(self, skip: bool, split: str) -> None:
        self._skip, self._split = skip, split
        self._last = self._in_a_row = 0

    def take(self, step: int, fault: Fault) -> str:
        """A line that says why the step is left out; raises UserError, on every rank, if the run stops instead."""
        self._in_a_row = self._in_a_row + 1 if step == self._last + 1 else 1
        self._last = step
        where = f"step {step}: {fault.what} (split {self._split!r})"
        if not self._skip:
            remedy = f"{REMEDY}; or leave such steps out: training.nonfinite=skip"
        elif not fault.undone:
            remedy = f"The tables have learned from the step already, so that it can't be left out. {REMEDY}"
        elif self._in_a_row == _IN_A_ROW:
            remedy = f"{_IN_A_ROW} steps in a row are too many to leave out. {REMEDY}"
        else:
            return f"WARNING: {where}; nothing is learned from its {fault.num_rows:,} rows"
        raise UserError(f"{where}. {remedy}. --resume goes on from the last checkpoint")


@torch.no_grad()
def check_parameters(model: nn.Module, step: int) -> None:
    """Keep what isn't finite out of checkpoints: what an update alone did, of a learning rate far too high, say.

    A collective. Raises UserError, on every rank, naming a parameter.
    """
    bad = [name for name, value in model.state_dict().items() if not _all_finite(value)]
    if found := [name for verdict in on_every_rank(lambda: bad[:1]) for name in verdict]:
        raise UserError(
            f"step {step}: {found[0]} is NaN or infinite, so no checkpoint is written. {REMEDY}. "
            "--resume goes on from the last checkpoint"
        )


def _all_finite(value: Any) -> bool:
    pieces = [shard.tensor for shard in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
    return all(
        bool(torch.isfinite(torch.stack(piece.aminmax())).all())
        for piece in pieces
        if piece.is_floating_point() and piece.numel()
    )
