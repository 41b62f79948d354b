"""The plan as a table that people read."""

from rich import box
from rich.table import Table

from sharding.planner import Placement, Plan

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


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
    """Bytes in a unit that keeps the number below 1024."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def _imbalance(placement: Placement) -> str:
    """Largest shard over the mean one."""
    return f"{max(placement.bytes) * len(placement.bytes) / max(sum(placement.bytes), 1):.2f}"


def _ranks(ranks: tuple[int, ...]) -> str:
    unique = sorted(set(ranks))
    if len(unique) > 2 and unique == list(range(unique[0], unique[-1] + 1)):
        return f"{unique[0]}-{unique[-1]}"
    return ",".join(map(str, unique))
