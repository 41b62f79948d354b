"""Shard a model by its plan, and start its tables from values that don't depend on the plan."""

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule

from cetnet.models.cetnet import CETNet
from cetnet.models.embeddings import BLOCK_ROWS, initial_rows
from cetnet.sharding.config import CommunicationConfig
from cetnet.sharding.planner import Plan
from cetnet.sharding.sharders import sharders

_Block = tuple[Tensor, int, tuple[str, int, int, int, float, int]]
"""Rows of a table in memory, which of its columns is their first, and what `initial_rows` is told of them."""


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
    """Set the initial values of every table of a module, sharded or not; `stds` is by full table name.

    Blocks of rows are drawn side by side, on as many threads as PyTorch has, and take no more memory than that.
    """
    blocks: list[_Block] = []
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[-1] != "weight" or parts[-2] not in stds:
            continue
        name, dim = parts[-2], value.size(1)
        pieces: list[tuple[torch.Tensor, list[int]]] = [(value, [0, 0])]
        if isinstance(value, ShardedTensor):
            pieces = [(piece.tensor, piece.metadata.shard_offsets) for piece in value.local_shards()]
        for tensor, (row, column) in pieces:
            stop = row + len(tensor)
            starts = [row, *range((row // BLOCK_ROWS + 1) * BLOCK_ROWS, stop, BLOCK_ROWS)]
            blocks += [
                (tensor[start - row : end - row], column, (name, start, end, dim, stds[name], seed))
                for start, end in zip(starts, [*starts[1:], stop], strict=True)
            ]

    @torch.no_grad()  # each thread has a mode of its own
    def fill(block: _Block) -> None:
        rows, column, which = block
        rows.copy_(initial_rows(*which)[:, column : column + rows.size(1)])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, blocks))
