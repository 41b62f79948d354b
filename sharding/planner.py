"""The planner: which table goes where, on this cluster or on one that does not exist yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    PlannerError,
    ShardingOption,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from models.schema import Schema
from sharding.communication import codecs
from sharding.config import ClusterConfig, CommunicationConfig, ShardingConfig

# A data-parallel table would get the dense optimizer; a column-split one can't be resumed under another split.
DEFAULT_SHARDING_TYPES = ("table_wise", "row_wise", "table_row_wise")
# What a sharded EmbeddingCollection can do at all.
_UNPOOLED_TYPES = {"table_wise", "row_wise", "column_wise"}
_GIB = 1024**3


class PooledSharder(EmbeddingBagCollectionSharder):
    """Offers row-wise sharding on CPU too, which works but which TorchRec does not list there."""

    def sharding_types(self, compute_device_type: str) -> list[str]:  # noqa: ARG002
        """Everything but data-parallel, which would silently change a table's optimizer."""
        return ["table_wise", "row_wise", "table_row_wise", "column_wise", "table_column_wise", "grid_shard"]


class UnpooledSharder(EmbeddingCollectionSharder):
    """Sharder of the tables that are read position by position."""

    def sharding_types(self, compute_device_type: str) -> list[str]:  # noqa: ARG002
        """Everything but data-parallel, which also fails on CPU."""
        return ["table_wise", "row_wise", "column_wise"]


def sharders(communication: CommunicationConfig, device: str) -> list[ModuleSharder[nn.Module]]:
    """The sharders that planning and DistributedModelParallel use alike; `device` is `cpu` or `cuda`."""
    registry = codecs(communication, device)
    return [PooledSharder(qcomm_codecs_registry=registry), UnpooledSharder(qcomm_codecs_registry=registry)]


@dataclass(frozen=True)
class Placement:
    """Where the planner put a table.

    Attributes:
        table: full name, `<component>__<table>`.
        rows: number of embeddings.
        dim: embedding size.
        sharding_type: such as `row_wise`.
        kernel: compute kernel, such as `fused`.
        ranks: rank of each shard.
        bytes: storage of each shard, optimizer state and buffers included (planner's estimate).
        milliseconds: per step and rank, planner's estimate: a model, not a measurement.
    """

    table: str
    rows: int
    dim: int
    sharding_type: str
    kernel: str
    ranks: tuple[int, ...]
    bytes: tuple[int, ...]
    milliseconds: float


@dataclass(frozen=True)
class Plan:
    """TorchRec's plan and what it means, table by table."""

    sharding_plan: ShardingPlan
    placements: list[Placement]

    def bytes_per_rank(self, world_size: int) -> list[int]:
        """Storage of all tables on each rank (planner's estimate)."""
        total = [0] * world_size
        for placement in self.placements:
            for rank, size in zip(placement.ranks, placement.bytes, strict=True):
                total[rank] += size
        return total


def topology(cluster: ClusterConfig, world_size: int, local_world_size: int, device: str) -> Topology:
    """The cluster as the planner sees it; bandwidths in bytes per millisecond."""

    def rate(gb_per_second: float | None) -> float | None:
        return None if gb_per_second is None else gb_per_second * 1e9 / 1000

    hbm = cluster.hbm_gb
    if hbm is None and device == "cuda" and torch.cuda.is_available():
        hbm = torch.cuda.get_device_properties(0).total_memory / _GIB
    ddr = cluster.ddr_gb or psutil.virtual_memory().total / local_world_size / _GIB
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=local_world_size),
        HardwareConfig(
            hbm_cap_bytes=None if hbm is None else int(hbm * _GIB),
            ddr_cap_bytes=int(ddr * _GIB),
            hbm_mem_bw=rate(cluster.hbm_bandwidth),
            ddr_mem_bw=rate(cluster.ddr_bandwidth),
            intra_host_bw=rate(cluster.intra_host_bandwidth),
            inter_host_bw=rate(cluster.inter_host_bandwidth),
        ),
        KernelConfig(compute_device=device, use_hardware_based_bandwidth=True),
    )


def make_plan(
    model: nn.Module, schema: Schema, config: ShardingConfig, topology: Topology, batch_size: int
) -> Plan:
    """Let TorchRec's EmbeddingShardingPlanner place every table of a model.

    Args:
        model: tables may be on `meta`; the sparse optimizer must have been applied (it takes memory).
        schema: mean lengths become the pooling factors.
        config: constraints, and the precision of communication.
        topology: the cluster.
        batch_size: rows per rank and step.

    Returns:
        The plan; the same on every rank if a process group exists (rank 0 computes and broadcasts it).

    Raises:
        ValueError: the tables don't fit, or a constraint can't be met: one line with the remedy.
    """
    tables = _tables(model)
    if not tables:
        return Plan(ShardingPlan({}), [])
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        storage_reservation=FixedPercentageStorageReservation(config.reserve),
        constraints={
            table.name: ParameterConstraints(
                sharding_types=_allowed_types(table, config),
                pooling_factors=[_mean_length(schema, feature) for feature in table.feature_names],
            )
            for table in tables
        },
        stats=[],
        debug=False,
    )
    distributed = dist.is_initialized() and dist.get_world_size() == topology.world_size
    outcome: list[Plan | ValueError] = []
    if not distributed or dist.get_rank() == 0:
        try:
            sharding_plan = planner.plan(model, sharders(config.communication, topology.compute_device))
            # `_best_plan` is the only place that holds the estimates; TorchRec has no public name for it.
            placements = [_placement(option) for option in planner._best_plan or []]
            outcome = [Plan(sharding_plan, sorted(placements, key=lambda placement: placement.table))]
        except PlannerError as error:
            outcome = [ValueError(f"no sharding plan: {' '.join(str(error).split())}")]
    if distributed:
        outcome = outcome or [ValueError()]
        dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def _tables(model: nn.Module) -> list[BaseEmbeddingConfig]:
    tables: list[BaseEmbeddingConfig] = []
    for module in model.modules():
        # By exact class, as TorchRec's planner does it: dense collections are subclasses.
        if isinstance(module, EmbeddingBagCollection) and type(module) is EmbeddingBagCollection:
            tables += module.embedding_bag_configs()
        elif isinstance(module, EmbeddingCollection) and type(module) is EmbeddingCollection:
            tables += module.embedding_configs()
    return tables


def _allowed_types(table: BaseEmbeddingConfig, config: ShardingConfig) -> list[str]:
    wanted: Sequence[str] = DEFAULT_SHARDING_TYPES
    for pattern, constraint in config.constraints.items():
        if fnmatchcase(table.name, pattern):
            wanted = constraint.sharding_types
    supported = (
        wanted if isinstance(table, EmbeddingBagConfig) else [t for t in wanted if t in _UNPOOLED_TYPES]
    )
    if not supported:
        raise ValueError(
            f"sharding.constraints: table {table.name!r} is read as a sequence and can be "
            f"{', '.join(sorted(_UNPOOLED_TYPES))}, not {', '.join(wanted)}"
        )
    return list(supported)


def _mean_length(schema: Schema, name: str) -> float:
    return next(feature.mean_length for feature in schema.features if feature.name == name)


def _placement(option: ShardingOption) -> Placement:
    return Placement(
        table=option.name,
        rows=option.tensor.shape[0],
        dim=option.tensor.shape[1],
        sharding_type=option.sharding_type,
        kernel=option.compute_kernel,
        ranks=tuple(int(shard.rank) for shard in option.shards),
        bytes=tuple(int(shard.storage.hbm + shard.storage.ddr) for shard in option.shards),
        milliseconds=max(float(shard.perf.total) for shard in option.shards),
    )
