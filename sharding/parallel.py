"""Shard a model by its plan, and start its tables from values that don't depend on the plan."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule

from models.cetnet import CETNet
from models.embeddings import initial_rows
from sharding.config import CommunicationConfig
from sharding.planner import Plan, sharders


def shard(
    model: CETNet, plan: Plan, device: torch.device, seed: int, communication: CommunicationConfig
) -> DistributedModelParallel:
    """Wrap a model whose sharded tables are on `meta`; dense parameters are synchronised by DDP.

    Tables are filled row by row from the seed (`initial_rows`), so that the start is the same under every
    plan and world size.
    """
    stds = dict(model.table_std)
    parallel = DistributedModelParallel(
        model,
        device=device,
        plan=plan.sharding_plan,
        sharders=sharders(communication, device.type),
        init_data_parallel=dist.get_world_size() > 1,  # DDP alone would copy gradients for nobody
    )
    fill_tables(parallel, stds, seed)
    if device.type == "cpu":
        for module in parallel.modules():
            if isinstance(module, HashZchManagedCollisionModule):
                module.reset_intrainer_bulk_eval_mode()  # on CPU the map from ids to rows can only be read
    return parallel


@torch.no_grad()
def fill_tables(model: nn.Module, stds: dict[str, float], seed: int) -> None:
    """Set the initial values of every table of a module, sharded or not; `stds` is by full table name."""
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[-1] != "weight" or parts[-2] not in stds:
            continue
        name = parts[-2]
        if isinstance(value, ShardedTensor):
            for piece in value.local_shards():
                (row, column), (rows, columns) = piece.metadata.shard_offsets, piece.metadata.shard_sizes
                values = initial_rows(name, row, row + rows, value.size(1), stds[name], seed)
                piece.tensor.copy_(values[:, column : column + columns])
        else:
            value.copy_(initial_rows(name, 0, value.shape[0], value.shape[1], stds[name], seed))
