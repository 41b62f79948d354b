"""Measure this cluster for a few seconds, so that the planner's estimates are of it and not of TorchRec's default.

The planner divides bytes by a bandwidth and knows nothing else: not the latency, not which collective. So each
bandwidth here is the one with which its estimate is what was measured: the whole buffer of a collective counts, the
part that stays on the rank too, and all of a host's processes measure at once, as they train.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from rich import box
from rich.table import Table
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from cetnet.models.schema import Feature, Schema
from cetnet.sharding.config import ClusterConfig, ShardingConfig
from cetnet.sharding.planner import make_plan, topology
from cetnet.trainer.console import console, output
from cetnet.trainer.files import write_text
from cetnet.trainer.optimizers import fuse_sparse_optimizer
from cetnet.trainer.processes.distributed import Processes

_TABLES, _ROWS = 8, 100_000
_BATCH = 4096
_COLLECTIVES = ("all-to-all", "reduce-scatter", "all-gather", "all-reduce")


@dataclass(frozen=True)
class Measurement:
    """One thing timed: `bytes`, as the planner counts them, in `seconds` of the slowest process."""

    what: str
    where: str
    bytes: float
    seconds: float

    @property
    def gb_per_second(self) -> float:
        """Bandwidth, GB/s."""
        return self.bytes / self.seconds / 1e9


def calibrate(
    processes: Processes, embedding_dim: int, megabytes: float, seconds: float = 2.0
) -> tuple[ClusterConfig, list[Measurement]]:
    """Measure lookups and collectives; every rank calls it and gets the same.

    Args:
        processes: of the cluster; each host has equally many.
        embedding_dim: of the tables looked up.
        megabytes: size of a collective's buffer, about that of a step's exchange.
        seconds: about as long is each thing measured, three times at least.

    Returns:
        The keys of `sharding.cluster` that can be measured here, and all measurements.
    """
    size, local = processes.world_size, processes.local_world_size
    _say(processes, "lookups")
    lookups = _lookups(processes, embedding_dim, seconds)
    measured = [lookups]
    memory = "hbm_bandwidth" if processes.device.type == "cuda" else "ddr_bandwidth"
    values = {memory: lookups.gb_per_second}
    if local > 1:
        group, _ = dist.new_subgroups(group_size=local)
        _say(processes, "collectives within each host")
        measured += (within := _collectives(processes, group, local, "within a host", megabytes, seconds))
        values["intra_host_bandwidth"] = _bandwidth(within)
    if size > local:
        _say(processes, "collectives between hosts")
        between = _collectives(processes, dist.group.WORLD, size, "between hosts", megabytes, seconds)
        measured += between
        values["inter_host_bandwidth"] = _bandwidth(between)
    return ClusterConfig(**{key: float(f"{value:.4g}") for key, value in values.items()}), measured


def report(
    cluster: ClusterConfig, measured: list[Measurement], processes: Processes, out: Path | None
) -> None:
    """Print what was measured, and the keys for `sharding.cluster`, which also go to a file."""
    hosts = processes.world_size // processes.local_world_size
    local = processes.local_world_size
    title = f"{hosts} host{'s'[: hosts > 1]} x {local} process{'es'[: 2 * (local > 1)]}, {dist.get_backend()}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measured")
    table.add_column("where")
    for column in ("MB", "ms", "GB/s"):
        table.add_column(column, justify="right")
    for item in measured:
        table.add_row(
            item.what,
            item.where,
            f"{item.bytes / 1e6:.1f}",
            f"{item.seconds * 1e3:.2f}",
            f"{item.gb_per_second:.4g}",
        )
    output.print(table)
    text = f"# `cetnet calibrate`, {title}, {datetime.now(UTC):%Y-%m-%d}; GB/s as the planner counts bytes\n"
    text += "".join(f"{key}: {value:g}\n" for key, value in cluster.model_dump(exclude_none=True).items())
    output.print(text, highlight=False, soft_wrap=True)
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    output.print(
        f'{out}: written; use it with `cetnet train FILE "sharding.cluster=$(cat {out})"`',
        highlight=False,
        soft_wrap=True,
    )


def _lookups(processes: Processes, dim: int, seconds: float) -> Measurement:
    """Random rows, one a feature and example: lookup, gradient and the fused optimizer's update."""
    on_gpu = processes.device.type == "cuda"
    location = EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(_ROWS, dim, location, ComputeDevice.CUDA if on_gpu else ComputeDevice.CPU)] * _TABLES,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        pooling_mode=PoolingMode.SUM,
        device=processes.device,
    )
    kernel.init_embedding_weights_uniform(-0.1, 0.1)
    count = _TABLES * _BATCH
    ids = torch.randint(_ROWS, (count,), device=processes.device)
    offsets = torch.arange(count + 1, device=processes.device)
    gradient = torch.ones(_BATCH, _TABLES * dim, device=processes.device)
    took = _time(processes, lambda: kernel(ids, offsets).backward(gradient), seconds)
    # As many bytes as the planner would count: its estimate at 1 GB/s tells, whatever its formula.
    return Measurement("lookup + update", "each process", _planned_ms(processes, dim) * 1e6, took)


def _planned_ms(processes: Processes, dim: int) -> float:
    """The planner's estimate for `_TABLES` tables with a memory of 1 GB/s and a network without limits."""
    table = EmbeddingBagConfig(
        name="table", embedding_dim=dim, num_embeddings=_ROWS, feature_names=["feature"]
    )
    model = EmbeddingBagCollection(tables=[table], device=torch.device("meta"))
    fuse_sparse_optimizer(model, "rowwise_adagrad", lr=0.1, eps=1e-8)
    schema = Schema(
        label="label",
        tables={"table": _ROWS},
        features=(Feature(name="feature", kind="categorical", table="table"),),
    )
    cluster = ClusterConfig(
        hbm_bandwidth=1, ddr_bandwidth=1, intra_host_bandwidth=1e9, inter_host_bandwidth=1e9
    )
    sharding = ShardingConfig(constraints={"*": {"sharding_types": ["table_wise"]}})
    alone = topology(cluster, world_size=1, local_world_size=1, device=processes.device.type)
    (placement,) = make_plan(model, schema, sharding, alone, _BATCH).placements
    return placement.milliseconds * _TABLES


def _collectives(
    processes: Processes,
    group: dist.ProcessGroup | None,
    size: int,
    where: str,
    megabytes: float,
    seconds: float,
) -> list[Measurement]:
    piece = max(1, int(megabytes * 1e6) // 4 // size)
    whole = torch.ones(piece * size, device=processes.device)
    received, part = torch.empty_like(whole), torch.ones(piece, device=processes.device)
    calls: tuple[Callable[[], object], ...] = (
        lambda: dist.all_to_all_single(received, whole, group=group),
        lambda: dist.reduce_scatter_tensor(part, whole, group=group),
        lambda: dist.all_gather_into_tensor(received, part, group=group),
        lambda: dist.all_reduce(received.zero_(), group=group),
    )
    return [
        Measurement(what, where, 4 * piece * size, _time(processes, call, seconds))
        for what, call in zip(_COLLECTIVES, calls, strict=True)
    ]


def _bandwidth(measured: list[Measurement]) -> float:
    """One number for what the exchange of embeddings uses: all-to-all both ways (table-wise), or reduce-scatter
    forward and all-gather backward (row-wise); GB/s."""
    to_all, scatter, gather = (item.seconds for item in measured[:3])
    return 4 * measured[0].bytes / (2 * to_all + scatter + gather) / 1e9


def _time(processes: Processes, call: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call, of the slowest process; some seconds in all."""

    def once() -> float:
        dist.barrier()
        start = time.perf_counter()
        call()
        if processes.device.type == "cuda":
            torch.cuda.synchronize()
        slowest = torch.tensor(time.perf_counter() - start, device=processes.device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        return float(slowest)

    once()
    repeats = max(3, min(20, int(seconds / once())))
    return median(once() for _ in range(repeats))


def _say(processes: Processes, what: str) -> None:
    if processes.is_main:
        console.print(f"measuring {what} ...", highlight=False)
