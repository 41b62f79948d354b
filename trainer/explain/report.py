"""An explanation as tables, plots and JSON."""

import json
import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.table import Table

from cetnet.trainer.console import output, shown
from cetnet.trainer.errors import printable
from cetnet.trainer.explain.decided import Slice
from cetnet.trainer.explain.explain import Explanation
from cetnet.trainer.explain.importance import Lost
from cetnet.trainer.files import output_file, without_nonfinite
from cetnet.trainer.plan.plot_style import COLORS, MARKERS

MOST_BARS, LONGEST = 40, 40


def print_explanation(found: Explanation, title: str) -> None:
    """Print two tables: what permuting features costs, and which component decided."""
    table = Table(title=title, title_justify="left")
    table.add_column("permuted")
    for name in found.ne:
        table.add_column(name, justify="right")
    table.add_row("nothing: NE", *(shown(ne) for ne in found.ne.values()), end_section=True)
    for names, losses in found.lost.items():
        table.add_row(names, *(_cell(each) for each in losses.values()))
    output.print(table)
    first = next(iter(found.ne))
    marked = sum(losses[first].holds_zero for losses in found.lost.values())
    output.print(
        f"NE lost in % of the NE, with its 95 % interval (paired bootstrap over {found.units:,} "
        f"{'rows' if found.units == found.rows else 'groups'}); ~: the interval holds 0 ({first}: {marked} of "
        f"{len(found.lost)})"
    )
    if found.why_no_weights:
        output.print(f"No weights of components: {found.why_no_weights}.")
        return
    output.print(_slice_table(found.slices))


def _cell(lost: Lost) -> str:
    mark = "~" if lost.holds_zero else " "
    return f"{lost.percent:+.3f} [{lost.low:.3f}, {lost.high:.3f}]{mark}"


def _slice_table(slices: list[Slice]) -> Table:
    table = Table(title="Which component decided", title_justify="left")
    table.add_column("rows of")
    table.add_column("rows", justify="right")
    first = slices[0]
    for name in first.weight:
        table.add_column(f"weight\n{name}", justify="right")
    for name in first.decides:
        table.add_column(f"decides\n{name}", justify="right")
    for name in first.ne:
        table.add_column(f"NE\n{name}", justify="right")
    for each, following in zip(slices, [*slices[1:], None], strict=True):
        table.add_row(
            _name(each),
            f"{each.rows:,}",
            *(f"{weight:.3f}" for weight in each.weight.values()),
            *(f"{share:.1%}" for share in each.decides.values()),
            *(shown(ne) for ne in each.ne.values()),
            end_section=following is not None and following.column != each.column,
        )
    return table


def _name(one: Slice) -> str:
    value = printable(" ".join(one.value.split()))
    value = value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
    return f"{one.column}: {value}" if one.column else value


def write_explanation(found: Explanation, asked: dict[str, Any], folder: Path) -> list[Path]:
    """Write plots and `explain.json` into a folder, each whole; returns their paths.

    `asked` stands at the beginning of the JSON. Raises UserError for what the disk refuses.
    """
    figures = {"importance.png": _importance_plot(found)}
    if found.slices:
        figures["decided.png"] = _decided_plot(found.slices)
    for name, figure in figures.items():
        _save(figure, folder / name)
    content = asked | {
        "checkpoint": found.checkpoint,
        "rows": found.rows,
        "units": found.units,
        "ne": found.ne,
        "lost_percent": [
            {"permuted": names, "output": name, **each._asdict(), "interval_holds_0": each.holds_zero}
            for names, losses in found.lost.items()
            for name, each in losses.items()
        ],
        "slices": [without_nonfinite(vars(each)) for each in found.slices],
        "why_no_weights": found.why_no_weights,
    }
    with output_file(folder / "explain.json") as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return [folder / name for name in (*figures, "explain.json")]


def _importance_plot(found: Explanation) -> Figure:
    """Horizontal bars of the first output with intervals; the others' as points with theirs."""
    names = list(found.lost)[:MOST_BARS]
    figure = Figure(figsize=(9, 1.4 + 0.34 * len(names)), dpi=110, layout="constrained")
    panel = figure.subplots()
    first, *others = found.ne
    places = range(len(names))
    for i, name in enumerate([first, *others]):
        losses = [found.lost[feature][name] for feature in names]
        middle = [each.percent for each in losses]
        errors = [
            [max(0, each.percent - each.low) for each in losses],
            [max(0, each.high - each.percent) for each in losses],
        ]
        shift = 0 if not i else (i - (len(others) + 1) / 2) * 0.5 / max(1, len(others))
        heights = [place + shift for place in places]
        color = COLORS[i % len(COLORS)]
        if not i:
            bars = panel.barh(heights, middle, color=color, alpha=0.35, label=name)
            for bar, each in zip(bars, losses, strict=True):
                if each.holds_zero:
                    bar.set(hatch="////", edgecolor="0.4", fill=False)
        panel.errorbar(
            middle,
            heights,
            xerr=errors,
            fmt="none" if not i else MARKERS[i % len(MARKERS)],
            color=color,
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=None if not i else name,
        )
    panel.axvline(0, color="0.3", linewidth=0.8)
    panel.set_yticks(list(places), names, parse_math=False)
    panel.invert_yaxis()
    panel.set_xlabel("NE lost when permuted, % of the NE, with its 95 % interval (hatched: it holds 0)")
    panel.set_title(
        f"{found.rows:,} rows"
        + (f", the first {len(names)} of {len(found.lost)}" if len(names) < len(found.lost) else ""),
        loc="left",
        fontsize=10,
    )
    panel.grid(axis="x", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="lower right")
    return figure


def _decided_plot(slices: list[Slice]) -> Figure:
    """Share of the rows that each component decides, a bar a slice, with its mean weight."""
    slices = [slices[0], *(each for each in slices if each.column)]
    figure = Figure(figsize=(9, 1.4 + 0.3 * len(slices)), dpi=110, layout="constrained")
    panel = figure.subplots()
    places = range(len(slices))
    left = [0.0] * len(slices)
    for i, name in enumerate(slices[0].decides):
        shares = [each.decides[name] for each in slices]
        panel.barh(places, shares, left=left, color=COLORS[i % len(COLORS)], alpha=0.6, label=name)
        for place, start, share, each in zip(places, left, shares, slices, strict=True):
            if share > 0.06:
                text = f"{each.weight[name]:.3f}"
                panel.text(start + share / 2, place, text, ha="center", va="center", fontsize=8)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    labels = [f"{_name(each)}  ({each.rows:,})" for each in slices]
    panel.set_yticks(list(places), labels, parse_math=False)
    panel.invert_yaxis()
    panel.margins(y=0.01)
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(PercentFormatter(1.0))
    panel.set_xlabel(
        "share of the rows in which a component has the largest weight; in the bars: its mean weight"
    )
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(
        frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=min(6, len(slices[0].decides))
    )
    return figure


def _save(figure: Figure, path: Path) -> None:
    with output_file(path) as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # values of any alphabet; the JSON has them
        figure.savefig(aside, format="png")
