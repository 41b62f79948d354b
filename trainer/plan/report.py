"""What `cetnet plan` prints."""

import re
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cetnet.models.schema import Schema
from cetnet.sharding.cluster import Cluster
from cetnet.sharding.plan_table import human_bytes, plan_dict, reason
from cetnet.sharding.planner import Placement
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import console, output
from cetnet.trainer.errors import DoesNotFit, UserError
from cetnet.trainer.files import output_file
from cetnet.trainer.plan.cluster_options import on_cluster
from cetnet.trainer.plan.dense_cost import UTILISATION
from cetnet.trainer.plan.estimate import Estimate, estimate, refusal, sweep
from cetnet.trainer.plan.remedies import Remedy, remedies

SweepResult = tuple[str, Cluster, Estimate | None]
_SHOWN = 25
_NOTES = {
    "table_row_wise": "table_row_wise: rows split over one host's GPUs; partial sums are added up on its fast links.",
    "row_wise": "row_wise: rows split over all GPUs; every lookup crosses the network, but the load is even.",
    "grid_shard": "grid_shard: columns split over hosts, rows over each host's GPUs.",
}


def plan_cluster(
    config: RunConfig,
    schema: Schema,
    cluster: Cluster,
    device: str,
    batch_per_gpu: int | None,
    json: Path | None,
) -> None:
    """Print the plan for a cluster; if there is none, what would make one possible, and raise UserError."""
    config = on_cluster(config, cluster, batch_per_gpu)
    try:
        result = estimate(config, schema, cluster, device)
    except DoesNotFit:
        tried = []
        for remedy in remedies(config, schema, cluster, device, batch_per_gpu):
            if console.is_terminal:
                console.print(f"tried: {remedy.what}", style="dim")
            tried.append(remedy)
        output.print(remedy_table(tried))
        fits = [remedy.how for remedy in tried if remedy.estimate]
        raise UserError(
            f"no sharding plan: the tables don't fit {cluster}; "
            + (f"what does: {'; '.join(fits)}" if fits else "nothing that was tried helps")
        ) from None
    output.print(header(result))
    output.print(placement_table(result), memory_table(result), time_table(result), sep="\n")
    for warning in warnings(result):
        output.print(warning, style="bold red")
    if json:
        content = plan_dict(result.plan, cluster.world_size) | {"estimate": estimate_json(result)}
        _write_json(json, content)


def plan_sweep(
    config: RunConfig,
    schema: Schema,
    clusters: list[Cluster],
    device: str,
    batch_per_gpu: int | None,
    json: Path | None,
) -> list[SweepResult]:
    """Plan each model for each cluster and print the table; raises UserError if nothing fits anywhere."""
    results = []
    for name, cluster, result in sweep(config, schema, clusters, device, batch_per_gpu):
        outcome = f"{result.step_ms:.2f} ms a step" if result else "does not fit"
        console.print(f"{name} on {cluster}: {outcome}", style="dim")
        results.append((name, cluster, result))
    if not any(result for _, _, result in results):
        raise UserError(f"no sharding plan on any of {clusters[0]} to {clusters[-1]}; add hosts")
    output.print(sweep_table(results))
    refused = {str(c): why for _, c, r in results if r and (why := refusal(r.config, c))}
    if refused:
        others = (
            f" (other shapes that it refuses: {', '.join(list(refused)[:-1])})" if len(refused) > 1 else ""
        )
        output.print(list(refused.values())[-1] + others, style="bold red")
    if json:
        rows = [
            {
                "model": name,
                "gpus": c.world_size,
                "cluster": str(c),
                **(estimate_json(r) if r else {"fits": False}),
            }
            for name, c, r in results
        ]
        _write_json(json, {"sweep": rows})
    return results


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with output_file(path) as aside:
        aside.write_text(dumps(content, indent=1) + "\n", encoding="utf-8")


def estimate_json(result: Estimate) -> dict[str, Any]:
    """The totals of an estimate, for machines: bytes and milliseconds."""
    return {
        "fits": True,
        "memory_max": max(result.load.memory, default=0),
        "memory_imbalance": result.load.memory_imbalance,
        "host_memory_max": max(result.load.host, default=0),
        "dense_bytes": result.dense.bytes,
        "phases_ms": result.load.slowest._asdict(),
        "time_imbalance": result.load.time_imbalance,
        "dense_compute_ms": result.dense.compute_ms,
        "dense_uncounted": list(result.dense.uncounted),
        "dense_all_reduce_ms": result.dense.all_reduce_ms,
        "step_ms": result.step_ms,
        "step_ms_is_lower_bound": result.is_lower_bound,
        "rows_per_second": result.rows_per_second,
    }


def header(result: Estimate) -> str:
    """Cluster, figures and batch, in two lines."""
    cluster, figures = result.cluster, result.cluster.hardware
    known = [
        f"{value:g} {unit}"
        for value, unit in (
            (figures.hbm_gb, "GiB HBM"),
            (figures.hbm_bandwidth, "GB/s HBM"),
            (figures.intra_host_bandwidth, "GB/s in the host"),
            (figures.inter_host_bandwidth, "GB/s between hosts"),
            (figures.ddr_gb, "GiB host memory"),
        )
        if value is not None
    ]
    batch = result.config.data.batch_size
    return (
        f"Estimates, not measurements. {cluster}: {cluster.nodes} hosts of {cluster.gpus_per_node}; a GPU has "
        + (", ".join(known) or "TorchRec's default figures")
        + f"\nglobal batch {batch:,} = {batch // cluster.world_size:,} rows a GPU; "
        f"{len(result.plan.placements):,} tables of {sum(t.rows for t in result.plan.placements):,} rows"
    )


def placement_table(result: Estimate) -> Table:
    """Where tables go and why: one by one if there are few, else the largest and the rest in groups."""
    table = _table(
        "Which table goes where, and why", "table", "rows x dim", "sharding", "ranks", "largest shard", "why"
    )
    placements = sorted(result.plan.placements, key=lambda t: -sum(t.weights))
    few = len(placements) <= _SHOWN + 10
    shown, rest = (placements, []) if few else (placements[:_SHOWN], placements[_SHOWN:])
    for placement in shown:
        table.add_row(
            placement.table,
            f"{placement.rows:,} x {placement.dim}",
            placement.sharding_type,
            _ranks(placement, result.cluster.world_size),
            human_bytes(max(placement.bytes)),
            _reason(placement, result),
        )
    groups: dict[tuple[str, str, str], list[Placement]] = {}
    for placement in rest:
        why = re.sub(r": [\d.]+ ms.*", "", _reason(placement, result))
        groups.setdefault((placement.table.split("__")[0], placement.sharding_type, why), []).append(
            placement
        )
    for (owner, kind, why), members in groups.items():
        rows = sum(member.rows for member in members)
        largest = max(max(member.bytes) for member in members)
        table.add_row(
            f"{owner}: {len(members)} more", f"{rows:,} in all", kind, "", human_bytes(largest), why
        )
    notes = [_NOTES[kind] for kind in _NOTES if any(p.sharding_type == kind for p in placements)]
    table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def memory_table(result: Estimate) -> Table:
    """Memory of a rank, by what takes it."""
    load, dense = result.load, result.dense
    table = _table("Memory of a rank", "", "fullest", "mean")
    fullest = max(range(len(load.memory)), key=load.memory.__getitem__)
    for name, values in (
        ("table rows", load.weights),
        ("their optimizer's state", load.optimizer),
        ("ids and looked-up rows, caches", load.buffers),
    ):
        table.add_row(name, human_bytes(values[fullest]), human_bytes(sum(values) / len(values)))
    total = load.memory
    table.add_row(
        "tables in all", human_bytes(total[fullest]), human_bytes(sum(total) / len(total)), style="bold"
    )
    table.add_row(
        "dense part: parameters, gradients, state", human_bytes(dense.bytes), human_bytes(dense.bytes)
    )
    if result.reserve:
        table.add_row(
            f"reserved for it, activations, batches ({result.config.sharding.reserve:.0%})",
            human_bytes(result.reserve),
            human_bytes(result.reserve),
        )
    if any(load.host):
        table.add_row(
            "host memory, tables", human_bytes(max(load.host)), human_bytes(sum(load.host) / len(load.host))
        )
    table.caption = f"imbalance (fullest over mean): {load.memory_imbalance:.2f}"
    table.caption_justify = "left"
    return table


def time_table(result: Estimate) -> Table:
    """Time of a step, by what takes it."""
    load, dense = result.load, result.dense
    table = _table("Time of a step, ms", "", "slowest rank", "mean")
    names = (
        "forward: lookup",
        "forward: exchange of rows",
        "backward: update",
        "backward: exchange",
        "prefetch from host memory",
    )
    for name, slowest, each in zip(names, load.slowest, zip(*load.phases, strict=True), strict=True):
        if slowest or not name.startswith("prefetch"):
            table.add_row(name, f"{slowest:.3f}", f"{sum(each) / len(each):.3f}")
    table.add_row("embedding part", f"{result.embedding_ms:.3f}", "", style="bold")
    if dense.compute_ms is not None:
        table.add_row(
            f"dense part: {dense.flops / 1e12:.3g} TFLOP at {UTILISATION:.0%} of the peak",
            f"{dense.compute_ms:.3f}",
            "",
        )
    if dense.all_reduce_ms is not None:
        table.add_row("dense part: all-reduce of gradients", f"{dense.all_reduce_ms:.3f}", "")
    rate = result.rows_per_second
    least, most = ("at least ", "at most ") if result.is_lower_bound else ("", "")
    table.add_row("step, if nothing overlaps", f"{least}{result.step_ms:.3f}", "", style="bold")
    table.caption = (
        f"{most}{rate:,.0f} rows/s, {rate / result.cluster.world_size:,.0f} a GPU; "
        f"imbalance of the embedding part (slowest over mean): {load.time_imbalance:.2f}"
    )
    if result.is_lower_bound:
        table.caption += f"; {missing_compute([result])}"
    table.caption_justify = "left"
    return table


def missing_compute(results: Sequence[Estimate]) -> str:
    """Whose dense compute is not in the step times."""
    if any(result.dense.compute_ms is None for result in results):
        return "the dense part's computing is not in it (no peak known)"
    names = dict.fromkeys(name for result in results for name in result.dense.uncounted)
    return f"the computing of {', '.join(names)} is not in it (FLOPs that can't be counted)"


def warnings(result: Estimate) -> list[str]:
    """What the planner doesn't see."""
    found = [why] if (why := refusal(result.config, result.cluster)) else []
    if result.reserve and result.dense.bytes > result.reserve:
        found.append(
            f"The dense part takes {human_bytes(result.dense.bytes)} of every GPU, more than the "
            f"{human_bytes(result.reserve)} reserved for it, activations and batches: raise sharding.reserve, or "
            "shrink the components' dense layers."
        )
    return found


def remedy_table(tried: Sequence[Remedy]) -> Table:
    """What was tried and what came of it."""
    table = _table("The tables don't fit. Tried with the planner:", "what", "how", "outcome")
    for remedy in tried:
        result = remedy.estimate
        outcome = "does not fit"
        if result:
            outcome = f"fits: {human_bytes(max(result.load.memory))} on the fullest GPU"
            if any(result.load.host):
                outcome += f" and {human_bytes(max(result.load.host))} of host memory"
            outcome += f", {result.embedding_ms:.2f} ms for the embedding part"
        table.add_row(remedy.what, remedy.how, outcome)
    return table


def sweep_table(results: Sequence[SweepResult]) -> Table:
    """One line per model and cluster; efficiency is against the smallest cluster that fits."""
    table = _table(
        "Estimates against the number of GPUs",
        *(
            "model",
            "cluster",
            "GPUs",
            "rows/GPU",
            "memory/GPU",
            "step ms",
            "embedding ms",
            "rows/s",
            "efficiency",
        ),
    )
    for name, cluster, result in results:
        if result is None:
            table.add_row(name, str(cluster), f"{cluster.world_size:,}", "", "does not fit")
            continue
        table.add_row(
            name,
            str(cluster),
            f"{cluster.world_size:,}",
            f"{result.config.data.batch_size // cluster.world_size:,}",
            human_bytes(max(result.load.memory) + result.dense.bytes),
            "\u2265 " * result.is_lower_bound + f"{result.step_ms:.2f}",
            f"{result.embedding_ms:.2f}",
            "\u2264 " * result.is_lower_bound + f"{result.rows_per_second:,.0f}",
            f"{efficiency(results, name)[cluster.world_size]:.0%}",
        )
    if bounds := [result for _, _, result in results if result and result.is_lower_bound]:
        table.caption = f"\u2265: at least, \u2264: at most; {missing_compute(bounds)}"
        table.caption_justify = "left"
    return table


def efficiency(results: Sequence[SweepResult], name: str) -> dict[int, float]:
    """Rows per second and GPU of a model, over those on the smallest cluster that fits, by number of GPUs."""
    rates = {c.world_size: r.rows_per_second / c.world_size for n, c, r in results if n == name and r}
    return {gpus: rate / rates[min(rates)] for gpus, rate in rates.items()}


def _reason(placement: Placement, result: Estimate) -> str:
    figures = result.cluster.hardware
    memory = figures.hbm_gb if result.device == "cuda" else figures.ddr_gb
    free = None if memory is None else memory * 1024**3 * (1 - result.config.sharding.reserve)
    return reason(placement, free)


def _ranks(placement: Placement, world_size: int) -> str:
    first, last = min(placement.ranks), max(placement.ranks)
    if first == last:
        return str(first)
    return f"all {world_size}" if len(set(placement.ranks)) == world_size else f"{first}-{last}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    text = ("", "table", "sharding", "why", "what", "how", "outcome", "model", "cluster")
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right", overflow="fold")
    return table
