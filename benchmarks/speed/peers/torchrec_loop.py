"""Contender: DCNv2 in a bare TorchRec loop, data in memory as ready KeyedJaggedTensors.

EmbeddingBagCollection, DistributedModelParallel, TrainPipelineSparseDist; row-wise Adagrad fused into the tables'
backward pass, Adam for the rest. No reader, metrics, checks, logging or checkpoints.
"""

import itertools
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.nn import functional as F
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cetnet.benchmarks.speed.peers.columns import read_columns, side_by_side
from cetnet.benchmarks.speed.peers.dcnv2 import DIM, DenseDCNv2
from cetnet.benchmarks.speed.step_log import StepLog
from cetnet.models.batch import Batch
from cetnet.models.schema import Schema
from cetnet.trainer.console import quieten
from cetnet.trainer.data.dataset import read_schema


class BareDCNv2(nn.Module):
    """A collection of tables, and the rest: a batch -> loss and logits `[B]`."""

    def __init__(self, schema: Schema, bf16: bool, device: torch.device) -> None:
        super().__init__()
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=name, embedding_dim=DIM, num_embeddings=rows, feature_names=[name])
                for name, rows in schema.tables.items()
            ],
            device=torch.device("meta"),
        )
        _apply_optimizer_in_backward(RowWiseAdagrad, self.tables.parameters(), {"lr": 0.02})
        self.dense = DenseDCNv2(len(schema.tables), len(schema.dense_features)).to(device)
        self.bf16, self.device_type = bf16, device.type

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and logits of a batch."""
        rows = self.tables(batch.sparse).values()
        with torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.dense(rows, batch.dense)
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch.label)
        return loss, logits.detach()


def main(
    data: Path,
    progress: Path,
    batch_size: int = 4096,
    batches: int = 200,
    bf16: Annotated[bool, typer.Option("--bf16", help="Autocast the dense part to bfloat16.")] = False,
    device: str = "cpu",
) -> None:
    """Train until killed, over and over the first batches."""
    quieten()
    where = torch.device(device)
    backend = "gloo" if where.type == "cpu" else "nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    schema = read_schema(data / "schema.yaml")
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=1, compute_device=where.type),
        constraints={name: ParameterConstraints(sharding_types=["table_wise"]) for name in schema.tables},
    )
    model, sharders = BareDCNv2(schema, bf16, where), [EmbeddingBagCollectionSharder()]
    plan = planner.collective_plan(model, sharders, dist.GroupMember.WORLD)
    parallel = DistributedModelParallel(model, device=where, plan=plan, sharders=sharders)
    dense = dict(in_backward_optimizer_filter(parallel.named_parameters()))
    optimizer = CombinedOptimizer(
        [parallel.fused_optimizer, KeyedOptimizerWrapper(dense, lambda p: torch.optim.Adam(p, lr=1e-3))]
    )
    pipeline = TrainPipelineSparseDist(parallel, optimizer, where)
    ready = itertools.cycle(read_batches(data, schema, batch_size, batches))
    log = StepLog(progress)
    while True:
        pipeline.progress(ready)
        log.step()


def read_batches(data: Path, schema: Schema, batch_size: int, batches: int) -> list[Batch]:
    """Whole batches of the training split."""
    columns = read_columns(data, batches * batch_size)
    ids, dense = torch.from_numpy(side_by_side(columns, "C")), torch.from_numpy(side_by_side(columns, "I"))
    label, keys = torch.from_numpy(columns["label"]), list(schema.tables)
    lengths = torch.ones(batch_size * len(keys), dtype=torch.int32)
    weight = torch.ones(batch_size)
    return [
        Batch(
            KeyedJaggedTensor(keys, values=ids[rows].T.flatten(), lengths=lengths),
            dense[rows],
            label[rows],
            weight,
            torch.arange(rows.start, rows.stop),
        )
        for start in range(0, len(label) - batch_size + 1, batch_size)
        for rows in [slice(start, start + batch_size)]
    ]


if __name__ == "__main__":
    typer.run(main)
