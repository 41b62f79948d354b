"""What may make room for tables that don't fit, each tried with the planner."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from cetnet.models.schema import Schema
from cetnet.sharding.cluster import Cluster
from cetnet.sharding.planner import host_memory_gb
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import DoesNotFit
from cetnet.trainer.plan.cluster_options import on_cluster
from cetnet.trainer.plan.estimate import Estimate, estimate
from cetnet.trainer.session import build_model

_MOST_GPUS = 4096


class Remedy(NamedTuple):
    """Something that might make a plan possible, and what came of trying it."""

    what: str
    how: str
    estimate: Estimate | None
    """None: it doesn't help."""


def remedies(
    config: RunConfig, schema: Schema, cluster: Cluster, device: str, batch_per_gpu: int | None
) -> Iterator[Remedy]:
    """Try, with the planner, what may make room for tables that don't fit; `config` is `on_cluster(cluster)`."""
    singly: list[tuple[str, str, dict[str, Any]]] = []
    constraints = config.sharding.constraints
    if any("row_wise" not in constraint.sharding_types for constraint in constraints.values()):
        wider = {
            pattern: c.model_copy(
                update={"sharding_types": tuple(dict.fromkeys([*c.sharding_types, "row_wise"]))}
            )
            for pattern, c in constraints.items()
        }
        singly.append(
            ("row-wise allowed", "add row_wise to sharding.constraints", {"sharding.constraints": wider})
        )
    if config.training.table_precision == "fp32":
        singly.append(("fp16 tables", "training.table_precision=fp16", {"training.table_precision": "fp16"}))
    if device == "cuda" and not config.sharding.host_memory:
        singly.append(
            ("host memory, cached on the GPU", "sharding.host_memory=true", {"sharding.host_memory": True})
        )
    helped = False
    for what, how, changes in singly:
        outcome = _try(_changed(config, changes), schema, cluster, device)
        helped = helped or outcome is not None
        yield Remedy(what, how, outcome)
    if not helped and len(singly) > 1:
        together = {key: value for _, _, changes in singly for key, value in changes.items()}
        outcome = _try(_changed(config, together), schema, cluster, device)
        yield Remedy("all of these", " ".join(how for _, how, _ in singly), outcome)
    yield _more_nodes(config, schema, cluster, device, batch_per_gpu)


def _more_nodes(
    config: RunConfig, schema: Schema, cluster: Cluster, device: str, batch_per_gpu: int | None
) -> Remedy:
    """The smallest power of two of hosts that fits, with the same batch: a GPU's if that is given."""
    nodes = 1
    most = (_MOST_GPUS if batch_per_gpu else min(_MOST_GPUS, config.data.batch_size)) // cluster.gpus_per_node
    while nodes * 2 <= most:
        nodes *= 2
        if nodes <= cluster.nodes:
            continue
        larger = cluster.with_nodes(nodes)
        if outcome := _try(on_cluster(config, larger, batch_per_gpu), schema, larger, device):
            return Remedy("more hosts", f"--cluster {larger}", outcome)
    return Remedy("more hosts", f"--cluster up to {cluster.with_nodes(max(nodes, 1))}", None)


def _try(config: RunConfig, schema: Schema, cluster: Cluster, device: str) -> Estimate | None:
    model = build_model(config, schema, "meta")
    # What can't fit in all memory together needs no planner.
    figures = config.sharding.cluster
    host = host_memory_gb(figures, cluster.gpus_per_node)
    memory = figures.hbm_gb if device == "cuda" else host
    if device == "cuda" and config.sharding.host_memory and memory is not None:
        memory += host
    tables = sum(
        p.numel() * p.element_size() for p in model.parameters() if hasattr(p, "_in_backward_optimizers")
    )
    if memory is not None and tables > cluster.world_size * memory * 1024**3:
        return None
    try:
        return estimate(config, schema, cluster, device)
    except DoesNotFit:
        return None


def _changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    for key, value in changes.items():
        section, name = key.split(".")
        part = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: part})
    return config
