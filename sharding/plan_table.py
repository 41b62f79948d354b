"""The plan as a table that people read."""

from pydantic import ByteSize
from rich import box
from rich.table import Table

from cetnet.sharding.planner import Alternative, Placement, Plan


def plan_table(plan: Plan, world_size: int) -> Table:
    """One line per table, and the totals per rank. Sizes and times are the planner's estimates."""
    table = Table(
        title=f"Sharding plan for {world_size} ranks (planner's estimates)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("table", "rows x dim", "sharding", "kernel", "ranks"):
        table.add_column(column, justify="right" if column == "rows x dim" else "left", overflow="fold")
    for column in ("bytes/rank", "imbalance", "ms/step"):
        table.add_column(column, justify="right")
    for placement in plan.placements:
        table.add_row(
            placement.table,
            f"{placement.rows:,} x {placement.dim}",
            placement.sharding_type,
            placement.kernel,
            _ranks(placement.ranks),
            human_bytes(max(placement.bytes)),
            _imbalance(placement),
            f"{placement.milliseconds:.3f}",
        )
    totals = plan.bytes_per_rank(world_size)
    mean = sum(totals) / world_size
    table.caption = (
        f"All tables: {human_bytes(max(totals))} on the fullest rank, {human_bytes(mean)} on average"
        f" (imbalance {max(totals) / mean:.2f})"
        if mean
        else "No table is sharded"
    )
    table.caption_justify = "left"
    return table


def plan_dict(plan: Plan, world_size: int) -> dict:
    """The plan for machines: `plan.json` of a run."""
    return {
        "world_size": world_size,
        "bytes_per_rank": plan.bytes_per_rank(world_size),
        "tables": [vars(placement) for placement in plan.placements],
    }


def human_bytes(size: float) -> str:
    """Bytes in a unit that keeps the number below 1024, such as `1.5 KiB`."""
    return ByteSize(size).human_readable(separator=" ")


def _imbalance(placement: Placement) -> str:
    """Largest shard over the mean one."""
    return f"{max(placement.bytes) * len(placement.bytes) / max(sum(placement.bytes), 1):.2f}"


def _ranks(ranks: tuple[int, ...]) -> str:
    unique = sorted(set(ranks))
    if len(unique) > 2 and unique == list(range(unique[0], unique[-1] + 1)):
        return f"{unique[0]}-{unique[-1]}"
    return ",".join(map(str, unique))


def reason(placement: Placement, capacity: float | None) -> str:
    """Why a table is where it is, in words; `capacity`: bytes that tables may take of one GPU."""
    of_kernel = [a for a in placement.alternatives if a.kernel == placement.kernel]
    types = {a.sharding_type: a for a in of_kernel}
    whole, kind = types.get("table_wise"), placement.sharding_type
    moved = ""
    if placement.kernel == "fused_uvm_caching":
        moved = "in host memory, cached on the GPU; "
    if len({a.sharding_type for a in placement.alternatives}) == 1:
        if kind == "table_wise":
            return f"{moved}whole: fits one GPU, no split weighed"
        return f"{moved}the only way allowed (sharding.constraints, or histories read in order)"
    here = types.get(kind)
    if kind == "table_wise" or whole is None or here is None:
        cheapest = min((a for a in of_kernel if a.sharding_type != kind), key=_time, default=None)
        if cheapest is None or here is None:
            return moved + "as allowed"
        if here.milliseconds <= cheapest.milliseconds:
            return f"{moved}whole on one GPU is fastest: {_than(here, cheapest)}"
        return f"{moved}whole: splitting would not shorten the slowest rank's step"
    where = f"over {len(placement.ranks)} GPUs" + (" of one host" if kind == "table_row_wise" else "")
    if capacity is not None and whole.bytes > capacity:
        return f"{moved}{human_bytes(whole.bytes)} don't fit one GPU: {where}"
    if here.milliseconds < whole.milliseconds:
        return f"{moved}faster {where}: {_than(here, whole)}"
    return f"{moved}{where}, to even out memory and time"


def _time(alternative: Alternative) -> float:
    return alternative.milliseconds


def _than(here: Alternative, other: Alternative) -> str:
    names = {"table_wise": "whole"}
    name = names.get(other.sharding_type, other.sharding_type)
    return f"{here.milliseconds:.2f} ms, {name} {other.milliseconds:.2f}"
