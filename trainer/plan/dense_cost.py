"""What the part that every GPU holds whole costs: memory, compute, the all-reduce of its gradients."""

from typing import NamedTuple

from cetnet.models.cetnet import CETNet
from cetnet.models.schema import Schema
from cetnet.sharding.cluster import Cluster
from cetnet.trainer.config import RunConfig
from cetnet.trainer.flops import flops_per_row
from cetnet.trainer.optimizers import dense_table_parameters

UTILISATION = 0.4
"""Share of the peak that the dense part is assumed to reach."""


_STATES = {"adam": 2, "adamw": 2, "adagrad": 1, "sgd": 0}


class DenseCost(NamedTuple):
    """The part that every GPU holds whole.

    Attributes:
        bytes: parameters, gradients and optimizer state; of frozen tables the first only.
        flops: of one step of one GPU, forward and backward, of the components that can be counted.
        uncounted: the components that can't be.
        compute_ms: at `UTILISATION` of the kind's peak; None if that is unknown.
        all_reduce_ms: of the gradients, once around the ring; None if the bandwidth is unknown.
    """

    bytes: int
    flops: float
    uncounted: tuple[str, ...]
    compute_ms: float | None
    all_reduce_ms: float | None


def dense_cost(model: CETNet, config: RunConfig, schema: Schema, cluster: Cluster) -> DenseCost:
    """The cost of the dense part of a model on a cluster."""
    size = reduced = 0
    tables = dense_table_parameters(model)
    for parameter in model.parameters():
        if hasattr(parameter, "_in_backward_optimizers"):
            continue  # a sharded table
        own = parameter.numel() * parameter.element_size()
        if parameter.requires_grad:
            optimizer = config.optimizer.dense_tables if id(parameter) in tables else config.optimizer.dense
            reduced += own
            own *= 2 + _STATES[optimizer.kind]
        size += own
    per_row, uncounted = flops_per_row(model, schema)
    flops = 3 * per_row * config.data.batch_size / cluster.world_size  # backward: twice the forward
    peak = cluster.bf16_tflops if config.training.precision == "bf16" else cluster.fp32_tflops
    rate, n = _ring_rate(cluster), cluster.world_size
    return DenseCost(
        bytes=size,
        flops=flops,
        uncounted=uncounted,
        compute_ms=None if peak is None else flops / (UTILISATION * peak * 1e12) * 1000,
        all_reduce_ms=None if rate is None else 2 * (n - 1) / n * reduced / (rate * 1e9) * 1000,
    )


def _ring_rate(cluster: Cluster) -> float | None:
    """GB/s around rings over all GPUs; None if it is unknown.

    A ring enters and leaves each host once, and NCCL makes one per network card: together they have all of a
    host's network, not one GPU's share.
    """
    inside, across = cluster.hardware.intra_host_bandwidth, cluster.hardware.inter_host_bandwidth
    if cluster.nodes == 1:
        return inside
    if across is None:
        return None
    across *= cluster.gpus_per_node
    return across if inside is None or cluster.gpus_per_node == 1 else min(inside, across)
