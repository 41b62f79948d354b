"""Optimizers: fused into the backward pass for sharded tables, ordinary for everything else."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed.batched_embedding_kernel import EmbeddingFusedOptimizer
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from cetnet.models.embeddings import DenseEmbeddingBagCollection, DenseEmbeddingCollection

_SPARSE: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}
_DENSE: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}

DenseFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def fuse_sparse_optimizer(model: nn.Module, kind: str, lr: float, eps: float) -> None:
    """Give every table that will be sharded its optimizer, which steps inside the backward pass.

    Must come before planning, since the optimizer's state takes memory. `kind`: rowwise_adagrad (one
    accumulator a row), adagrad, sgd, adam (CUDA only).
    """
    settings: dict[str, Any] = {"lr": lr} if kind == "sgd" else {"lr": lr, "eps": eps}
    for module in model.modules():
        if type(module) in (EmbeddingBagCollection, EmbeddingCollection):
            _apply_optimizer_in_backward(_SPARSE[kind], module.parameters(), settings)


def dense_factory(kind: str, lr: float, weight_decay: float) -> DenseFactory:
    """Constructor of an ordinary optimizer: adam, adamw, adagrad or sgd."""
    return lambda parameters: _DENSE[kind](parameters, lr=lr, weight_decay=weight_decay, fused=True)  # type: ignore[call-arg]


def combine_optimizers(
    model: DistributedModelParallel, dense: DenseFactory, dense_tables: DenseFactory, clip_norm: float | None
) -> KeyedOptimizer:
    """One optimizer over fused tables, dense parameters and dense tables.

    A learning rate set on its `param_groups` reaches all three. Clipping is by the norm of the gradients
    of dense parameters and dense tables; fused tables have no gradient to clip.
    """
    named = in_backward_optimizer_filter(model.named_parameters())
    parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
    of_tables = dense_table_parameters(model.module)
    groups = {
        "dense": (dense, {k: v for k, v in parameters.items() if id(v) not in of_tables}),
        "dense_tables": (dense_tables, {k: v for k, v in parameters.items() if id(v) in of_tables}),
    }
    optimizers: list[Any] = [("fused", model.fused_optimizer)]
    optimizers += [
        (name, KeyedOptimizerWrapper(group, factory)) for name, (factory, group) in groups.items() if group
    ]
    combined = CombinedOptimizer(optimizers)
    if clip_norm is None:
        return combined
    return GradientClippingOptimizer(combined, clipping=GradientClipping.NORM, max_gradient=clip_norm)


def fused_tables(optimizer: KeyedOptimizer) -> Iterator[Any]:
    """FBGEMM's modules, each a group of tables, behind the `fused_optimizer` of a sharded model."""
    if isinstance(optimizer, CombinedOptimizer):
        for _, part in optimizer.optimizers:
            yield from fused_tables(part)
    elif isinstance(optimizer, EmbeddingFusedOptimizer):
        yield optimizer._emb_module  # TorchRec has them neither in `modules()` nor under a public name


def set_fused_step(model: DistributedModelParallel, step: int) -> None:
    """Tell the fused optimizers how many steps they have made, which `adam` reckons with.

    FBGEMM counts lookups, those of evaluations too, and its count is in no state dict.
    """
    for tables in fused_tables(model.fused_optimizer):
        tables.iter.fill_(step)
        tables.iter_cpu.fill_(step)  # the copy that the kernels get; `set_optimizer_step` leaves it as it is


def dense_table_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that are tables which every process holds whole, frozen ones too."""
    modules: Iterable[nn.Module] = (
        module
        for module in model.modules()
        if isinstance(module, (DenseEmbeddingBagCollection, DenseEmbeddingCollection))
    )
    return {id(parameter) for module in modules for parameter in module.parameters()}
