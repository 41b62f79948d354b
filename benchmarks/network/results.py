"""What was measured, as a table, as CSV and as a plot."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich import box
from rich.table import Table

from cetnet.trainer.files import write_text
from cetnet.trainer.plan.plot_style import COLORS

PLANS: dict[str, list[str]] = {"table_wise": ["table_wise"], "row_wise": ["row_wise"], "planned": []}
"""The sharding types that each allows; none: all."""


@dataclass(frozen=True)
class Result:
    """One configuration, measured and estimated; times in milliseconds.

    Attributes:
        mbit: bandwidth of each host, Mbit/s; None: no limit.
        plan: key of PLANS.
        precision: of embeddings and gradients on the network.
        tables: sharding types of the plan, with their number of tables.
        step: median of `cetnet train`'s steps.
        embeddings: median of what the planner estimates: lookups, exchange, gradients, update.
        default: planner's estimate with TorchRec's default topology.
        calibrated: the same with what `cetnet calibrate` measured.
    """

    mbit: float | None
    plan: str
    precision: str
    tables: str
    step: float
    embeddings: float
    default: float
    calibrated: float


def rate_name(mbit: float | None) -> str:
    """A bandwidth in words."""
    if mbit is None:
        return "unlimited"
    return f"{mbit:g} Mbit/s" if mbit < 1000 else f"{mbit / 1000:g} Gbit/s"


_HEADINGS = (
    "bandwidth",
    "plan",
    "on the wire",
    "step (ms)",
    "embeddings (ms)",
    "default estimate (ms)",
    "measured / default",
    "calibrated estimate (ms)",
    "measured / calibrated",
)


def _cells(result: Result) -> list[str]:
    plan = result.plan if result.plan != "planned" else f"planned ({result.tables})"
    return [
        rate_name(result.mbit),
        plan,
        result.precision,
        f"{result.step:.0f}",
        f"{result.embeddings:.1f}",
        f"{result.default:.2f}",
        f"{result.embeddings / result.default:.1f}",
        f"{result.calibrated:.1f}",
        f"{result.embeddings / result.calibrated:.2f}",
    ]


def table(results: Sequence[Result], title: str) -> Table:
    """For the terminal; a line between bandwidths."""
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(_HEADINGS):
        shown.add_column(heading, justify="left" if index < 3 else "right")
    for result, following in zip(results, [*results[1:], results[-1]], strict=True):
        shown.add_row(*_cells(result), end_section=result.mbit != following.mbit)
    return shown


def write_results(results: Sequence[Result], title: str, about: str, out: Path) -> None:
    """Write table.md, with `about` under the table, table.csv and plot.png, each anew."""
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|:--|:--|:--|" + "--:|" * (len(_HEADINGS) - 3)]
    lines += ["| " + " | ".join(_cells(result)) + " |" for result in results]
    write_text(out / "table.md", "\n".join([*lines, "", f"({about})"]) + "\n")
    with (out / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(results[0])))
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
    _plot(results, title, out / "plot.png")


def _plot(results: Sequence[Result], title: str, path: Path) -> None:
    """Step times as bars; measured against estimated as points. Hatches and fillings tell without colour."""
    figure = Figure(figsize=(12, 5), dpi=150, layout="constrained")
    bars, points = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _draw_steps(bars, results, title)
    _draw_estimates(points, results)
    for axes in (bars, points):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, axis="y")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    points.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.savefig(path)


def _by_kind(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """The results of each plan and precision."""
    kinds: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        kinds.setdefault((result.plan, result.precision), []).append(result)
    return kinds


def _draw_steps(axes: Axes, results: Sequence[Result], title: str) -> None:
    kinds, plans = _by_kind(results), list(PLANS)
    rates = list(dict.fromkeys(result.mbit for result in results))
    width = 0.8 / len(kinds)
    for index, ((plan, precision), mine) in enumerate(kinds.items()):
        color, half = COLORS[plans.index(plan)], precision != "fp32"
        drawn = axes.bar(
            [rates.index(r.mbit) + (index - (len(kinds) - 1) / 2) * width for r in mine],
            [r.step for r in mine],
            width,
            label=f"{plan.replace('_', '-')}, {precision}",
            color="white" if half else color,
            edgecolor=color if half else "white",
            hatch=("//", "..", "xx")[plans.index(plan)],
            linewidth=1.2,
        )
        axes.bar_label(drawn, fmt="{:,.0f}", fontsize=6, padding=1)
    steps = [r.step for r in results]
    axes.set_yscale("log")
    axes.set_ylim(10 ** math.floor(math.log10(min(steps) / 2)), max(steps) * 4)
    axes.set_xticks(range(len(rates)), [rate_name(rate) for rate in rates])
    axes.set_ylabel("ms a step, `cetnet train` (log scale)")
    axes.set_title(f"{title}: step time by bandwidth of each host", loc="left")
    axes.legend(fontsize=8, frameon=False, ncols=2)


def _draw_estimates(axes: Axes, results: Sequence[Result]) -> None:
    plans = list(PLANS)
    for (plan, precision), mine in _by_kind(results).items():
        color = COLORS[plans.index(plan)]
        for estimate, filled in (("default", False), ("calibrated", True)):
            axes.plot(
                [getattr(r, estimate) for r in mine],
                [r.embeddings for r in mine],
                "os^"[plans.index(plan)],
                color=color,
                markerfacecolor=color if filled else "white",
                markersize=9 if precision != "fp32" else 6,
                linestyle="none",
                label=f"{plan.replace('_', '-')}, {precision}" if filled else None,
            )
    every = [value for r in results for value in (r.embeddings, r.default, r.calibrated)]
    line = [min(every) / 2, max(every) * 2]
    axes.plot(line, line, color="0.3", linewidth=1)
    axes.fill_between(line, [v / 2 for v in line], [v * 2 for v in line], color="0.9", zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("planner's estimate, ms")
    axes.set_ylabel("measured: embeddings alone, ms")
    axes.set_title("hollow: default topology; filled: calibrated", loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    axes.set_ylim(line[0] / 2, line[1] * 8)
    axes.annotate("grey: within 2x", (0.97, 0.03), xycoords="axes fraction", ha="right", fontsize=9)
