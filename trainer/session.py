"""From a configuration to a sharded model with its optimizer; the same for training, scoring and planning."""

import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.modules.embedding_configs import DataType
from torchrec.optim.keyed import KeyedOptimizer

from cetnet.models.batch import Batch
from cetnet.models.cetnet import CETNet, Member, Predictions
from cetnet.models.config import Codistillation
from cetnet.models.rules import managed_lanes_refused
from cetnet.models.schema import Schema
from cetnet.models.teaching import SoftLabels
from cetnet.sharding.parallel import shard
from cetnet.sharding.planner import NoPlan, Plan, make_plan, topology
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import DoesNotFit, UserError
from cetnet.trainer.flops import flops_per_row
from cetnet.trainer.nonfinite import GuardedOptimizer
from cetnet.trainer.optimizers import combine_optimizers, dense_factory, fuse_sparse_optimizer
from cetnet.trainer.processes.distributed import Processes

_COPIED_ROWS = 1 << 18


@dataclass(frozen=True)
class Session:
    """Everything that a step needs."""

    model: DistributedModelParallel
    optimizer: KeyedOptimizer
    guard: GuardedOptimizer
    pipeline: TrainPipelineSparseDist[Batch, Predictions] | TrainPipelineBase[Batch, Predictions]
    plan: Plan
    outputs: list[str]
    num_parameters: dict[str, int]
    multiply_adds: float | None  # of a row, forward, by the dense part; None if it can't be counted
    table_bytes: int


def build_session(config: RunConfig, schema: Schema, processes: Processes) -> Session:
    """Build, plan, shard; every rank calls it. Raises UserError if the planner finds no place for the tables."""
    torch.manual_seed(config.training.seed)
    model = build_model(config, schema, processes.device)
    num_parameters, table_bytes = count_parameters(model), count_table_bytes(model)
    flops, uncounted = flops_per_row(model, schema)
    plan = plan_model(
        model, config, schema, processes.device.type, processes.world_size, processes.local_world_size
    )
    outputs = model.outputs
    parallel = shard(model, plan, processes.device, config.training.seed, config.sharding.communication)
    if config.training.compile:
        compile_components(parallel.module, processes.device)
    dense, tables = config.optimizer.dense, config.optimizer.dense_tables
    optimizer = combine_optimizers(
        parallel,
        dense_factory(dense.kind, dense.lr, dense.weight_decay),
        dense_factory(tables.kind, tables.lr, tables.weight_decay),
        config.optimizer.clip_norm,
    )
    # Without a sharded table there is no sparse data to distribute ahead, and nothing for the trace to find.
    pipeline_class = TrainPipelineSparseDist if plan.placements else TrainPipelineBase
    guard = GuardedOptimizer(optimizer, parallel)
    pipeline = pipeline_class(parallel, guard, processes.device)
    return Session(
        parallel,
        optimizer,
        guard,
        pipeline,
        plan,
        outputs,
        num_parameters,
        multiply_adds=None if uncounted else flops / 2,
        table_bytes=table_bytes,
    )


def run_pipeline(session: Session, batches: Iterable[Batch]) -> Iterator[Predictions]:
    """Drive the train pipeline over batches: trains in training mode, scores in eval mode."""
    iterator = iter(batches)
    session.pipeline.reset()  # it remembers that the batches before came to an end
    while True:
        try:
            predictions = session.pipeline.progress(iterator)
        except StopIteration:
            return
        yield predictions


def compile_components(model: CETNet, device: torch.device) -> None:
    """Have every component compiled when it is first called: in place, so that names in checkpoints stay.

    First for the sizes of that call; when others come, for any.

    Raises UserError if a CPU is to be compiled for and there is no compiler.
    """
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
            if not Path(sysconfig.get_path("include"), "Python.h").exists():
                raise UserError(
                    "training.compile needs Python's headers: install python3-dev, or leave it out"
                )
        except InvalidCxxCompiler as error:
            raise UserError(
                "training.compile needs a C++ compiler: install g++, name one in CXX, or leave it out"
            ) from error
    torch._dynamo.config.optimize_ddp = False  # it would cut components where DDP's buckets end
    for member in model.towers.values():
        cast(Member, member).component.compile()


def build_model(config: RunConfig, schema: Schema, device: torch.device | str) -> CETNet:
    """The model with its sharded tables on `meta` and their sparse optimizer applied.

    Raises UserError if the components can't be built for these features, or a pattern matches no table.
    """

    def is_dense(table: str) -> bool:
        return any(fnmatchcase(table, pattern) for pattern in config.sharding.dense_tables)

    teacher, collaboration = config.training.teacher, config.model.collaboration
    stale_steps = collaboration.every_steps if isinstance(collaboration, Codistillation) else 0
    try:
        model = CETNet(
            schema,
            config.model,
            is_dense=is_dense,
            table_device="meta",
            device=device,
            bf16=config.training.precision == "bf16",
            table_type=DataType[config.training.table_precision.upper()],
            buckets=config.data.lanes,
            stale_rows=stale_steps * config.data.batch_size,
            soft_labels=SoftLabels(teacher, len(teacher.runs)) if teacher else None,
        )
    except (ValueError, RuntimeError, OverflowError) as error:
        # A RuntimeError is torch's, of sizes that can't be; a bug in an own component keeps its traceback.
        if isinstance(error, RuntimeError) and any("." in c.kind for c in config.model.components.values()):
            raise
        raise UserError(f"model: {' '.join(str(error).split())}") from error
    for key in ("constraints", "dense_tables"):
        for pattern in getattr(config.sharding, key):
            if not any(fnmatchcase(table, pattern) for table in model.table_std):
                raise UserError(
                    f"sharding.{key}: {pattern!r} matches no table; tables: {', '.join(model.table_std)}"
                )
    sparse = config.optimizer.sparse
    fuse_sparse_optimizer(model, sparse.kind, sparse.lr, sparse.eps)
    return model


@torch.no_grad()
def load_pretrained(model: nn.Module, schema: Schema, folder: Path) -> None:
    """Fill the tables of pretrained vectors; raises UserError for a file that is missing or doesn't fit."""
    tables = {f"pretrained__{table}": table for table in schema.pretrained}
    for key, value in model.state_dict().items():
        table = tables.get(key.split(".")[-2]) if "." in key else None
        if table is None:
            continue
        path = folder / "pretrained" / f"{table}.npy"
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{path}: vectors of table {table!r} cannot be read: {error}") from None
        if vectors.shape != tuple(value.shape):
            raise UserError(
                f"{path}: shape {vectors.shape}, but table {table!r} of the schema is {tuple(value.shape)}"
            )
        for start in range(0, len(vectors), _COPIED_ROWS):
            piece = np.asarray(vectors[start : start + _COPIED_ROWS], dtype=np.float32)
            value[start : start + _COPIED_ROWS] = torch.from_numpy(piece)


def plan_model(
    model: CETNet, config: RunConfig, schema: Schema, device: str, world_size: int, local_world_size: int
) -> Plan:
    """The planner's plan of a model for a cluster; raises DoesNotFit if there is none, UserError for a constraint
    that no table can meet, or that managed collision can't."""
    if schema.managed_collision and (
        complaint := managed_lanes_refused(lanes=config.data.lanes, world_size=world_size)
    ):
        raise UserError(complaint)
    try:
        return make_plan(
            model,
            schema,
            config.sharding,
            topology(config.sharding.cluster, world_size, local_world_size, device),
            batch_size=config.data.batch_size // world_size,
        )
    except NoPlan as error:
        raise DoesNotFit(str(error)) from error
    except ValueError as error:
        raise UserError(str(error)) from error


def count_parameters(model: CETNet) -> dict[str, int]:
    """Number of trained parameters in tables and in everything else; pretrained vectors are not counted."""
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    tables = sum(numel for name, numel in trained.items() if name.startswith("tables."))
    return {"tables": tables, "dense": sum(trained.values()) - tables}


def count_table_bytes(model: CETNet) -> int:
    """Bytes of the trained tables, without their optimizer's state."""
    return sum(p.numel() * p.element_size() for p in model.tables.parameters() if p.requires_grad)
