"""`cetnet plan`: estimates for clusters that are not at hand, remedies for what doesn't fit, sweeps."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from pydantic import ValidationError
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cetnet.models.cetnet import CETNet, Member
from cetnet.models.component import Inputs
from cetnet.models.embeddings import Tables
from cetnet.models.schema import Schema
from cetnet.sharding.cluster import Cluster, parse_cluster, parse_description, parse_sweep
from cetnet.sharding.config import ClusterConfig, ShardingConfig
from cetnet.sharding.estimate import Load, sum_by_rank
from cetnet.sharding.planner import Plan, host_memory_gb
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import DoesNotFit, UserError, validation_message
from cetnet.trainer.optimizers import dense_table_parameters
from cetnet.trainer.session import build_model, plan_model
from cetnet.trainer.yaml_files import read_yaml

UTILISATION = 0.4
"""Share of the peak that the dense part is assumed to reach."""
_STATES = {"adam": 2, "adamw": 2, "adagrad": 1, "sgd": 0}
_MOST_GPUS = 4096


class Dense(NamedTuple):
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


@dataclass(frozen=True)
class Estimate:
    """A plan for a cluster and what it would cost."""

    config: RunConfig
    cluster: Cluster
    device: str
    plan: Plan
    load: Load
    dense: Dense

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


class Remedy(NamedTuple):
    """Something that might make a plan possible, and what came of trying it."""

    what: str
    how: str
    estimate: Estimate | None
    """None: it doesn't help."""


def read_cluster(text: str) -> Cluster:
    """`64x8`, `64x8:h100` or a YAML file; raises UserError."""
    try:
        if cluster := parse_cluster(text):
            return cluster
        path = Path(text)
        if path.suffix not in (".yaml", ".yml") and not path.is_file():
            raise UserError(
                f"--cluster {text!r} is neither NODESxGPUS[:KIND], such as 64x8:h100, nor a YAML file"
            )
        return parse_description(read_yaml(path))
    except ValidationError as error:
        message = validation_message(error).replace(
            "see `cetnet config` for all keys",
            "keys: nodes, gpus_per_node, gpu, fp32_tflops, bf16_tflops and those of sharding.cluster",
        )
        raise UserError(f"{text}: {message}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--cluster {text}: {error}") from None


def read_sweep(text: str, like: Cluster) -> list[Cluster]:
    """`1x8..128x8[:KIND]`, hosts doubling; without a kind the figures are `like`'s. Raises UserError."""
    try:
        parsed = parse_sweep(text)
    except ValueError as error:
        raise UserError(f"--sweep {text}: {error}") from None
    if parsed is None:
        raise UserError(f"--sweep {text!r} is not of the form FIRSTxGPUS..LASTxGPUS, such as 1x8..128x8")
    first, nodes = parsed
    if first.gpu is None:
        first = replace(like, gpus_per_node=first.gpus_per_node)
    return [first.with_nodes(count) for count in nodes]


def on(config: RunConfig, cluster: Cluster, batch_per_gpu: int | None = None) -> RunConfig:
    """The configuration for a cluster: its figures, where `sharding.cluster` has none of its own."""
    figures = cluster.hardware.model_dump() | config.sharding.cluster.model_dump(exclude_none=True)
    changed = config.sharding.model_copy(update={"cluster": ClusterConfig(**figures)})
    data = config.data
    if batch_per_gpu:
        data = data.model_copy(update={"batch_size": batch_per_gpu * cluster.world_size})
    return config.model_copy(update={"sharding": changed, "data": data})


def estimate(config: RunConfig, schema: Schema, cluster: Cluster, device: str) -> Estimate:
    """Plan for a cluster whose figures the configuration has (`on`); raises UserError if there is no plan."""
    if config.data.batch_size < cluster.world_size:
        raise UserError(
            f"data.batch_size={config.data.batch_size} leaves some of {cluster.world_size:,} GPUs without a row; "
            "raise it or use --batch-per-gpu"
        )
    model = build_model(config, schema, "meta")
    plan = plan_model(model, config, schema, device, cluster.world_size, cluster.gpus_per_node)
    cluster = replace(cluster, hardware=config.sharding.cluster)
    dense = _dense(model, config, schema, cluster)
    return Estimate(config, cluster, device, plan, sum_by_rank(plan, cluster.world_size), dense)


def refusal(config: RunConfig, cluster: Cluster) -> str | None:
    """Why `cetnet train` would not start there, and the keys that mend it; None if it would."""
    batch, gpus = config.data.batch_size, cluster.world_size
    shuffled = config.data.order == "shuffled"
    lanes = config.data.lanes if shuffled else gpus
    if lanes % gpus:
        why = f"data.lanes={lanes} is not a multiple of the {gpus:,} GPUs"
    elif batch % lanes:
        of = f"data.lanes={lanes}" if shuffled else f"the {gpus:,} GPUs"
        why = f"data.batch_size={batch} is not a multiple of {of}"
    else:
        return None
    nearest = max(gpus, batch // gpus * gpus)
    keys = [f"data.batch_size={nearest}"] if nearest != batch else []
    if shuffled and (lanes % gpus or nearest % lanes):
        keys.append(f"data.lanes={gpus}")
    return f"`cetnet train` refuses {cluster}: {why}; set {' '.join(keys)}"


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
                yield name, cluster, estimate(on(model, cluster, batch_per_gpu), schema, cluster, device)
            except DoesNotFit:
                yield name, cluster, None


def remedies(
    config: RunConfig, schema: Schema, cluster: Cluster, device: str, batch_per_gpu: int | None
) -> Iterator[Remedy]:
    """Try, with the planner, what may make room for tables that don't fit; `config` is `on(cluster)`."""
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
        if outcome := _try(on(config, larger, batch_per_gpu), schema, larger, device):
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


def _dense(model: CETNet, config: RunConfig, schema: Schema, cluster: Cluster) -> Dense:
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
    per_row, uncounted = _flops_per_row(model, schema)
    flops = 3 * per_row * config.data.batch_size / cluster.world_size  # backward: twice the forward
    peak = cluster.bf16_tflops if config.training.precision == "bf16" else cluster.fp32_tflops
    rate, n = _ring_rate(cluster), cluster.world_size
    return Dense(
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


def _flops_per_row(model: CETNet, schema: Schema) -> tuple[float, tuple[str, ...]]:
    """Multiplications and additions of the components' forward pass, histories at their longest; counted on
    fake tensors. And the components that can't be counted: they look at their values, as recurrent ones do."""
    rows, total, uncounted = 2, 0, []
    for name, tower in model.towers.items():
        assert isinstance(tower, Member)
        shape = tower.assembly.shape
        # There is no formula for the fused attention of CPUs: count its matrix products one by one.
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FakeTensorMode(),
            FlopCounterMode(display=False) as counter,
        ):
            inputs = Inputs(
                tokens=torch.empty(rows, shape.num_tokens, shape.embedding_dim),
                sequences=torch.empty(
                    rows, shape.num_sequences, max(shape.max_length, 1), shape.embedding_dim
                ),
                lengths=torch.empty(rows, shape.num_sequences, dtype=torch.int64),
                dense=torch.empty(rows, len(schema.dense_features)),
                extra=torch.empty(rows, shape.num_extra),
            )
            held = {**dict(tower.component.named_parameters()), **dict(tower.component.named_buffers())}
            fake = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in held.items()}
            try:
                functional_call(tower.component, fake, (inputs,))
            except (NotImplementedError, RuntimeError):
                uncounted.append(name)
                continue
        total += counter.get_total_flops()
    return total / rows, tuple(uncounted)
