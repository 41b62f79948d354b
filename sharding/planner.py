"""The planner: which table goes where, on this cluster or on one that does not exist yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch import nn
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
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from cetnet.models.rules import managed_sharding_refused, width_refused
from cetnet.models.schema import Schema
from cetnet.sharding.config import ClusterConfig, ShardingConfig
from cetnet.sharding.proposers import OneOfEachSize, SplitLargest, slowest_shard
from cetnet.sharding.sharders import sharders

# A data-parallel table would get the dense optimizer; a column-split one can't be resumed under another split.
DEFAULT_SHARDING_TYPES = ("table_wise", "row_wise", "table_row_wise")
# What a sharded EmbeddingCollection can do at all.
_UNPOOLED_TYPES = {"table_wise", "row_wise", "column_wise"}
_GIB = 1024**3
# Above so many tables TorchRec's greedy proposers, quadratic in the number of tables, give way to `SplitLargest`.
_FEW_TABLES = 40
# Shards of row-wise tables that the planner looks at: it spends about 0.1 ms on each.
_MAX_SPLIT_SHARDS = 65_536


class NoPlan(ValueError):
    """No placement of the tables fits."""


class Phases(NamedTuple):
    """Milliseconds a step that a shard takes, planner's estimate. The exchange of ids, which is pipelined, counts
    for nothing in it."""

    forward: float
    forward_comms: float
    backward: float
    backward_comms: float
    prefetch: float


class Alternative(NamedTuple):
    """A way of sharding a table that the planner weighed: the largest shard's bytes of GPU (on CPU: host)
    memory and the slowest shard's milliseconds."""

    sharding_type: str
    kernel: str
    bytes: int
    milliseconds: float


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
        weights: bytes of each shard's rows.
        host: bytes of each shard that are in host memory; of `bytes`, the rest is on the GPU.
        optimizer: bytes of each shard's optimizer state.
        phases: milliseconds of each shard.
        alternatives: what else the planner weighed for this table.
    """

    table: str
    rows: int
    dim: int
    sharding_type: str
    kernel: str
    ranks: tuple[int, ...]
    bytes: tuple[int, ...]
    milliseconds: float
    weights: tuple[int, ...]
    optimizer: tuple[int, ...]
    host: tuple[int, ...]
    phases: tuple[Phases, ...]
    alternatives: tuple[Alternative, ...]


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


def host_memory_gb(cluster: ClusterConfig, local_world_size: int) -> float:
    """Host memory of one process, GiB: an equal share of this machine's, unless the cluster has a figure."""
    return cluster.ddr_gb or psutil.virtual_memory().total / local_world_size / _GIB


def topology(cluster: ClusterConfig, world_size: int, local_world_size: int, device: str) -> Topology:
    """The cluster as the planner sees it; bandwidths in bytes per millisecond."""

    def rate(gb_per_second: float | None) -> float | None:
        return None if gb_per_second is None else gb_per_second * 1e9 / 1000

    hbm = cluster.hbm_gb
    if hbm is None and device == "cuda" and torch.cuda.is_available():
        hbm = torch.cuda.get_device_properties(0).total_memory / _GIB
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=local_world_size),
        HardwareConfig(
            hbm_cap_bytes=None if hbm is None else int(hbm * _GIB),
            ddr_cap_bytes=int(host_memory_gb(cluster, local_world_size) * _GIB),
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
        NoPlan: the tables don't fit: one line.
        ValueError: a constraint can't be met, or a table is too wide: one line with the remedy.
    """
    tables = _tables(model)
    if not tables:
        return Plan(ShardingPlan({}), [])
    managed = managed_tables(model)
    kernels = ["fused", "fused_uvm_caching"] if config.host_memory else ["fused"]
    constraints = {
        table.name: ParameterConstraints(
            sharding_types=types,
            compute_kernels=["fused"] if table.name in managed else kernels,
            pooling_factors=[_mean_length(schema, feature) for feature in table.feature_names],
        )
        for table, types in zip(
            tables, _types_to_weigh(tables, managed, schema, config, topology), strict=True
        )
    }
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=OneOfEachSize(topology=topology, batch_size=batch_size, constraints=constraints),
        proposer=None if len(tables) <= _FEW_TABLES else SplitLargest(),
        storage_reservation=FixedPercentageStorageReservation(config.reserve),
        constraints=constraints,
        stats=[],
        debug=False,
    )
    distributed = dist.is_initialized() and dist.get_world_size() == topology.world_size
    outcome: list[Plan | ValueError] = []
    if not distributed or dist.get_rank() == 0:
        try:
            sharding_plan = planner.plan(model, sharders(config.communication, topology.compute_device))
            # `_best_plan` is the only place that holds the estimates; TorchRec has no public name for it.
            best = planner._best_plan or []
            weighed = _alternatives(planner._enumerator.last_stored_search_space or [])
            placements = [_placement(option, weighed[option.fqn]) for option in best]
            outcome = [Plan(sharding_plan, sorted(placements, key=lambda placement: placement.table))]
            if complaint := _widths_refused(best, topology):
                outcome = [ValueError(complaint)]
        except PlannerError as error:
            outcome = [NoPlan(f"no sharding plan: {' '.join(str(error).split())}")]
    if distributed:
        outcome = outcome or [ValueError()]
        dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def _widths_refused(options: Sequence[ShardingOption], topology: Topology) -> str | None:
    on_cuda = topology.compute_device == "cuda"
    complaints = (
        width_refused(option.name, max(shard.size[1] for shard in option.shards), on_cuda=on_cuda)
        for option in options
    )
    return next(filter(None, complaints), None)


def _tables(model: nn.Module) -> list[BaseEmbeddingConfig]:
    tables: list[BaseEmbeddingConfig] = []
    for module in model.modules():
        # By exact class, as TorchRec's planner does it: dense collections are subclasses.
        if isinstance(module, EmbeddingBagCollection) and type(module) is EmbeddingBagCollection:
            tables += module.embedding_bag_configs()
        elif isinstance(module, EmbeddingCollection) and type(module) is EmbeddingCollection:
            tables += module.embedding_configs()
    return tables


def managed_tables(model: nn.Module) -> set[str]:
    """Full names of the tables with managed collision."""
    collections = [module for module in model.modules() if isinstance(module, ManagedCollisionCollection)]
    return {table.name for collection in collections for table in collection.embedding_configs()}


def _allowed_types(table: BaseEmbeddingConfig, managed: set[str], config: ShardingConfig) -> list[str]:
    wanted: Sequence[str] = DEFAULT_SHARDING_TYPES
    for pattern, constraint in config.constraints.items():
        if fnmatchcase(table.name, pattern):
            wanted = constraint.sharding_types
    if table.name in managed:
        if complaint := managed_sharding_refused(table.name, wanted):
            raise ValueError(complaint)
        return ["row_wise"]
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


def _types_to_weigh(
    tables: list[BaseEmbeddingConfig],
    managed: set[str],
    schema: Schema,
    config: ShardingConfig,
    topology: Topology,
) -> list[list[str]]:
    """The sharding types that the planner weighs for each table: those allowed.

    On large clusters only for the tables that have most to gain from a split, the largest and the most looked
    up: a row-wise option has a shard per rank. The others stay whole, if that is allowed.
    """
    allowed = [_allowed_types(table, managed, config) for table in tables]
    if topology.world_size == 1:
        return [["table_wise"] if "table_wise" in types else types for types in allowed]
    limit = max(32, _MAX_SPLIT_SHARDS // topology.world_size)
    if len(tables) <= limit:
        return allowed
    device = topology.devices[0].storage
    memory = device.hbm if topology.compute_device == "cuda" else device.ddr
    sizes = [table.num_embeddings * table.embedding_dim for table in tables]
    lookups = [
        table.embedding_dim * sum(_mean_length(schema, feature) for feature in table.feature_names)
        for table in tables
    ]
    chosen = {i for i, size in enumerate(sizes) if 4 * size > memory / 8}
    for weight in (sizes, lookups):
        chosen |= set(sorted(range(len(tables)), key=weight.__getitem__, reverse=True)[: limit // 2])
    return [
        types if i in chosen or "table_wise" not in types else ["table_wise"]
        for i, types in enumerate(allowed)
    ]


def _alternatives(search_space: list[ShardingOption]) -> dict[str, tuple[Alternative, ...]]:
    found: dict[str, list[Alternative]] = {}
    for option in search_space:
        memory = max(int(shard.storage.hbm or shard.storage.ddr) for shard in option.shards)
        found.setdefault(option.fqn, []).append(
            Alternative(option.sharding_type, option.compute_kernel, memory, slowest_shard(option))
        )
    return {fqn: tuple(known) for fqn, known in found.items()}


def _placement(option: ShardingOption, alternatives: tuple[Alternative, ...]) -> Placement:
    weights = tuple(shard.size[0] * shard.size[1] * option.tensor.element_size() for shard in option.shards)
    per_weight = _state_per_weight(option)
    on_cpu = not any(shard.storage.hbm for shard in option.shards)
    return Placement(
        table=option.name,
        rows=option.tensor.shape[0],
        dim=option.tensor.shape[1],
        sharding_type=option.sharding_type,
        kernel=option.compute_kernel,
        ranks=tuple(int(shard.rank) for shard in option.shards),
        bytes=tuple(int(shard.storage.hbm + shard.storage.ddr) for shard in option.shards),
        milliseconds=slowest_shard(option),
        weights=weights,
        optimizer=tuple(round(size * per_weight) for size in weights),
        host=tuple(0 if on_cpu else int(shard.storage.ddr) for shard in option.shards),
        phases=tuple(
            Phases(
                float(shard.perf.fwd_compute),
                float(shard.perf.fwd_comms),
                float(shard.perf.bwd_compute),
                float(shard.perf.bwd_comms),
                float(shard.perf.prefetch_compute),
            )
            for shard in option.shards
        ),
        alternatives=alternatives,
    )


def _state_per_weight(option: ShardingOption) -> float:
    """Size of the fused optimizer's state relative to the weights', as TorchRec's storage estimate has it."""
    kind = getattr(option.tensor, "_optimizer_classes", [None])[0]
    multiples = {RowWiseAdagrad: 1 / option.tensor.shape[1], torch.optim.Adagrad: 1, torch.optim.Adam: 2}
    return multiples.get(kind, 0)
