"""What can be wrong with a training run before it starts, its model among it."""

from dataclasses import dataclass

import psutil

from cetnet.models.cetnet import CETNet
from cetnet.models.rules import managed_training_refused
from cetnet.models.schema import Schema
from cetnet.trainer.check_settings import check_settings
from cetnet.trainer.checkpoint.store import check_place
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.optimizers import dense_table_parameters
from cetnet.trainer.processes.distributed import resolve_device
from cetnet.trainer.run_folder import check_resumable
from cetnet.trainer.session import build_model, count_parameters


@dataclass(frozen=True)
class CheckedRun:
    """A training run of which everything was checked that can be, and its training split.

    Attributes:
        pause_at: the step after which it ends with a checkpoint, to be resumed.
    """

    config: RunConfig
    dataset: Dataset
    resume: bool
    pause_at: int | None = None


def check_run(config: RunConfig, world_size: int, resume: bool = False) -> CheckedRun:
    """Find every mistake that can be found before anything starts; raises UserError."""
    return check_model(config, check_settings(config, world_size, resume), resume)


def check_model(config: RunConfig, dataset: Dataset, resume: bool) -> CheckedRun:
    """What `check_settings` leaves, and where the checkpoints go; raises UserError."""
    build_checked(config, dataset.schema)
    check_begun(config, resume)
    return CheckedRun(config, dataset, resume)


def check_begun(config: RunConfig, resume: bool) -> None:
    """Raise UserError if the run can't go on with what is in its folder, or keep checkpoints where it wants."""
    if resume:
        check_resumable(config)
    if config.checkpoint.path is not None:
        check_place(config, resume)


def build_checked(config: RunConfig, schema: Schema) -> CETNet:
    """The model on `meta`; raises UserError if it can't be built or trained on this device, or held by this host."""
    on_cpu = resolve_device(config.training.device).type == "cpu"
    if config.optimizer.sparse.kind == "adam" and on_cpu:
        raise UserError(
            "optimizer.sparse.kind=adam runs on CUDA only, and the device here is the CPU; "
            "use rowwise_adagrad, adagrad or sgd"
        )
    for direction, precision in config.sharding.communication:
        if precision == "bf16" and on_cpu:
            raise UserError(
                f"sharding.communication.{direction}=bf16 runs on CUDA only, and the device here is the CPU; "
                "use fp16"
            )
    if complaint := managed_training_refused(
        schema.managed_collision or (),
        schema_file=f"{config.data.path}/schema.yaml",
        nonfinite=config.training.nonfinite,
        sparse_optimizer=config.optimizer.sparse.kind,
        on_cpu=on_cpu,
    ):
        raise UserError(complaint)
    _check_monitor(config, schema)
    model = build_model(config, schema, "meta")
    _check_memory(model)
    return model


def _check_memory(model: CETNet) -> None:
    """Of what every process holds, dense parameters and dense tables; the planner looks after the other tables."""
    of_tables = dense_table_parameters(model)
    tables = sum(p.numel() for p in model.parameters() if id(p) in of_tables)
    dense = count_parameters(model)["dense"]
    gib, total = 4 * (dense + tables) / 2**30, psutil.virtual_memory().total / 2**30
    if gib > total:
        raise UserError(
            f"model: {dense:,} dense parameters and {tables:,} of sharding.dense_tables take {gib:,.0f} GiB, and "
            f"this host has {total:,.0f}; make layers smaller, or shard more tables"
        )


def _check_monitor(config: RunConfig, schema: Schema) -> None:
    stopping = config.evaluation.early_stopping
    metrics = ["auc", "ne", "logloss", *(["gauc"] if schema.group else [])]
    known = [f"{metric}/{output}" for metric in metrics for output in config.model.outputs]
    if stopping and stopping.monitor not in known:
        raise UserError(
            f"evaluation.early_stopping.monitor={stopping.monitor!r} is none of {', '.join(known)}"
        )
