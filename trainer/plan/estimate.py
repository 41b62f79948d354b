"""`cetnet plan`: estimates for clusters that are not at hand, remedies for what doesn't fit, sweeps."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, cast

from cetnet.models.embeddings import Tables
from cetnet.models.rules import indivisible
from cetnet.models.schema import Schema
from cetnet.sharding.cluster import Cluster
from cetnet.sharding.config import ShardingConfig
from cetnet.sharding.planner import Plan
from cetnet.sharding.rank_load import Load, sum_by_rank
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import DoesNotFit, UserError
from cetnet.trainer.plan.cluster_options import on_cluster
from cetnet.trainer.plan.dense_cost import DenseCost, dense_cost
from cetnet.trainer.session import build_model, plan_model


@dataclass(frozen=True)
class Estimate:
    """A plan for a cluster and what it would cost."""

    config: RunConfig
    cluster: Cluster
    device: str
    plan: Plan
    load: Load
    dense: DenseCost

    @property
    def embedding_ms(self) -> float:
        """Milliseconds of the embedding part of a step: the slowest rank's, phase by phase."""
        return sum(self.load.slowest)

    @property
    def step_ms(self) -> float:
        """Of a whole step, nothing overlapping, as far as it is known."""
        return self.embedding_ms + (self.dense.compute_ms or 0) + (self.dense.all_reduce_ms or 0)

    @property
    def is_lower_bound(self) -> bool:
        """Whether the step takes longer than `step_ms`, since dense compute is missing in it."""
        return self.dense.compute_ms is None or bool(self.dense.uncounted)

    @property
    def rows_per_second(self) -> float:
        """Rows per second of the whole cluster."""
        return self.config.data.batch_size / self.step_ms * 1000 if self.step_ms else 0.0

    @property
    def reserve(self) -> float:
        """Bytes of a GPU (of a CPU rank: of host memory) that the planner leaves free; 0 if unknown."""
        capacity = self.cluster.hardware.hbm_gb if self.device == "cuda" else self.cluster.hardware.ddr_gb
        return self.config.sharding.reserve * (capacity or 0) * 1024**3


def estimate(config: RunConfig, schema: Schema, cluster: Cluster, device: str) -> Estimate:
    """Plan for a cluster whose figures the configuration has (`on_cluster`); raises UserError if there is no plan."""
    if config.data.batch_size < cluster.world_size:
        raise UserError(
            f"data.batch_size={config.data.batch_size} leaves some of {cluster.world_size:,} GPUs without a row; "
            "raise it or use --batch-per-gpu"
        )
    model = build_model(config, schema, "meta")
    plan = plan_model(model, config, schema, device, cluster.world_size, cluster.gpus_per_node)
    cluster = replace(cluster, hardware=config.sharding.cluster)
    dense = dense_cost(model, config, schema, cluster)
    return Estimate(config, cluster, device, plan, sum_by_rank(plan, cluster.world_size), dense)


def refusal(config: RunConfig, cluster: Cluster) -> str | None:
    """Why `cetnet train` would not start there, and the keys that fix it; None if it would."""
    gpus = cluster.world_size
    complaint = indivisible(
        batch_size=config.data.batch_size,
        lanes=config.data.shuffled_lanes,
        world_size=gpus,
        ranks=f"the {gpus:,} GPUs",
    )
    return f"`cetnet train` refuses {cluster}: {complaint}" if complaint else None


def single_models(config: RunConfig, schema: Schema) -> dict[str, RunConfig]:
    """Each different component of an ensemble as a model of its own; empty for a single model."""
    components = config.model.components
    if len(components) == 1:
        return {}
    tables = cast(dict[str, Tables], dict(build_model(config, schema, "meta").tables.items()))
    found: dict[str, RunConfig] = {}
    seen: list[Any] = []
    for name, component in components.items():
        if component not in seen:
            seen.append(component)
            model = config.model.model_copy(update={"components": {name: component}})
            own = [
                t for owner in (name, "shared", "pretrained") if owner in tables for t in tables[owner].names
            ]
            sharding = _relevant(config, own)
            found[name] = config.model_copy(update={"model": model, "sharding": sharding})
    return found


def _relevant(config: RunConfig, tables: list[str]) -> ShardingConfig:
    """The sharding section without patterns that match none of these tables."""
    sharding = config.sharding

    def concerns(pattern: str) -> bool:
        return any(fnmatchcase(table, pattern) for table in tables)

    return sharding.model_copy(
        update={
            "constraints": {k: v for k, v in sharding.constraints.items() if concerns(k)},
            "dense_tables": tuple(k for k in sharding.dense_tables if concerns(k)),
        }
    )


def sweep(
    config: RunConfig, schema: Schema, clusters: list[Cluster], device: str, batch_per_gpu: int | None
) -> Iterator[tuple[str, Cluster, Estimate | None]]:
    """Each single model and the ensemble on each cluster, one at a time; None where it doesn't fit."""
    models = {
        **single_models(config, schema),
        "ensemble" if len(config.model.components) > 1 else "model": config,
    }
    for name, model in models.items():
        for cluster in clusters:
            try:
                yield (
                    name,
                    cluster,
                    estimate(on_cluster(model, cluster, batch_per_gpu), schema, cluster, device),
                )
            except DoesNotFit:
                yield name, cluster, None
