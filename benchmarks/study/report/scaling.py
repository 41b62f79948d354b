"""What larger embeddings bring: metrics against their number of parameters, and the spectra of their tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from cetnet.benchmarks.study.definition import Study
from cetnet.benchmarks.study.report.document import Column
from cetnet.benchmarks.study.report.rows import Row
from cetnet.benchmarks.study.report.spectra import Spectra, Summary
from cetnet.benchmarks.study.report.tables import short_number, spread
from cetnet.trainer.plan.plot_style import COLORS, LINES, MARKERS, SIGNS

SIZE = "embedding parameters"

# --- metrics against parameters ------------------------------------------------------------------------


def lines_of(study: Study, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Of a section, the baseline and the variants of each method, from the smallest embeddings to the largest."""
    models = [row for row in rows if not row.component and row.costs]
    lines = {}
    for method in study.scaling:
        members = [row for row in models if row.is_baseline or study.method_of(row.variant) == method]
        if any(not row.is_baseline for row in members):
            lines[method] = sorted(members, key=lambda row: row.costs[SIZE][0])
    return lines


def same_size_pairs(study: Study, sections: Mapping[str, Sequence[Row]]) -> list[tuple[Row, Row]]:
    """Each variant of a method but the first, and that of the first method with as many embedding parameters."""
    pairs = []
    for rows in sections.values():
        lines = lines_of(study, rows)
        first, *others = (
            [row for row in lines.get(method, []) if not row.is_baseline] for method in study.scaling
        )
        pairs += [
            (row, same)
            for same in first
            for line in others
            for row in line
            if row.costs[SIZE] == same.costs[SIZE]
        ]
    return pairs


def draw_scaling(study: Study, sections: Mapping[str, Sequence[Row]]) -> Figure | None:
    """A panel for each section (a column) and metric (a row), a line per method; published levels below ours.

    None if no section has a variant of any method.
    """
    columns = {name: lines for name, rows in sections.items() if (lines := lines_of(study, rows))}
    if not columns:
        return None
    published = any("AUC" in row.published for rows in sections.values() for row in rows)
    levels = [("AUC", False), *([("AUC", True)] if published else []), ("NE", False)]
    figure = Figure(
        figsize=(max(7, 3.3 * len(columns)), 2.9 * len(levels) + 0.6), dpi=150, layout="constrained"
    )
    panels = figure.subplots(len(levels), len(columns), squeeze=False, sharex="col")
    for axes_row, (metric, of_paper) in zip(panels, levels, strict=True):
        for axes, lines in zip(axes_row, columns.values(), strict=True):
            _draw_panel(axes, study, lines, metric, of_paper)
        better = "lower" if metric == "NE" else "higher"
        axes_row[0].set_ylabel(f"{metric}, published" if of_paper else f"{metric} ({better} is better)")
    for first, last, name in zip(panels[0], panels[-1], columns, strict=True):
        first.set_title(name, loc="left")
        last.set_xlabel(SIZE)
    known = {line.get_label(): line for axes in panels[0] for line in axes.containers}
    legend = figure.legend(
        known.values(), known.keys(), loc="outside upper left", ncols=len(known), frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_panel(
    axes: Axes, study: Study, lines: Mapping[str, Sequence[Row]], metric: str, of_paper: bool
) -> None:
    sizes = sorted({row.costs[SIZE][0] for line in lines.values() for row in line})
    diverged: dict[str, None] = {}
    for index, method in enumerate(study.scaling):
        # A little beside each other, so that error bars can be seen.
        shift = 1.03 ** (index - (len(study.scaling) - 1) / 2)
        points = []
        for row in lines.get(method, []):
            size = row.costs[SIZE][0] * (1 if row.is_baseline else shift)
            values = row.metrics.get(metric, [])
            if of_paper and metric in row.published:
                points.append((size, row.published[metric], 0.0))
            elif not of_paper and metric == "NE" and values and fmean(values) > 1:
                # Worse than the base rate, it would flatten the others: it stands above the panel.
                who = "" if row.is_baseline else f"{SIGNS[index % 7]} "
                diverged[f"{who}{short_number(row.costs[SIZE][0])}: {fmean(values):.2f}"] = None
                points.append((size, math.nan, 0.0))
            elif not of_paper and values:
                deviation = stdev(values) if len(values) > 1 else 0.0
                points.append((size, fmean(values), deviation))
        if points:
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, y, error if any(error) else None, label=method, capsize=2, **_style(index))
    if metric == "NE":
        axes.set_ylim(top=min(1, axes.get_ylim()[1]))
    if diverged:
        axes.set_title("\n".join(wrap(f"above 1: {', '.join(diverged)}", 44)), loc="left", fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    shown: list[float] = []
    for tick in sizes:
        if not shown or math.log10(tick / shown[-1]) > 0.22:
            shown.append(tick)
    axes.set_xticklabels([short_number(tick) if tick in shown else "" for tick in sizes])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _style(index: int) -> dict:
    return {
        "color": COLORS[index % 7],
        "linestyle": LINES[index % 7],
        "marker": MARKERS[index % 7],
        "markersize": 5,
        "linewidth": 1.5,
    }


# --- spectra -------------------------------------------------------------------------------------------


def summary_columns(summaries: Sequence[Sequence[Summary]]) -> list[Column]:
    """How much of their width the tables of each variant use; a row per variant, a summary per seed."""

    def fixed(heading: str, of: Callable[[Summary], float]) -> Column:
        return Column(heading, [spread([of(run) for run in runs[:1]], "{:.0f}") for runs in summaries])

    def column(heading: str, of: Callable[[Summary], float], form: str) -> Column:
        values = [[of(run) for run in runs if math.isfinite(of(run))] for runs in summaries]
        return Column(heading, [spread(each, form) for each in values])

    return [
        fixed("tables side by side", lambda run: run.copies),
        fixed("width", lambda run: run.width),
        column("IA", lambda run: run.abundance, "{:.2f}"),
        column("IA / width (%)", lambda run: 100 * run.abundance / run.width, "{:.1f}"),
        column("effective rank", lambda run: run.rank, "{:.2f}"),
        column("effective rank / width (%)", lambda run: 100 * run.rank / run.width, "{:.1f}"),
        column("IA of one table", lambda run: run.abundance_of_one, "{:.2f}"),
        column("effective rank of one table", lambda run: run.rank_of_one, "{:.2f}"),
    ]


def rank_columns(runs: Sequence[Sequence[Spectra]]) -> list[Column]:
    """Effective rank of every table (an ensemble's side by side); a row per variant, spectra per seed."""
    tables = {table: None for variant in runs for run in variant for table in run.side_by_side}
    return [
        Column(
            table,
            [
                spread(
                    [run.side_by_side[table].effective_rank for run in variant if table in run.side_by_side],
                    "{:.1f}",
                )
                for variant in runs
            ],
        )
        for table in tables
    ]


def draw_spectra(study: Study, spectra: Mapping[str, Sequence[Spectra]], tables: Sequence[str]) -> Figure:
    """Singular values over the largest, a panel for each total width, a line per method or variant.

    Geometric means over `tables` and over the seeds of each variant, `spectra`.
    """
    widths: dict[int, dict[str, list[NDArray[np.float64]]]] = {}
    for variant, runs in spectra.items():
        for run in runs:
            for spectrum in (run.side_by_side[table] for table in tables if table in run.side_by_side):
                label = study.method_of(variant) or variant
                sigma = np.array(spectrum.singular_values)
                if sigma.max() > 0:
                    of_width = widths.setdefault(spectrum.width, {})
                    of_width.setdefault(label, []).append(np.log10((sigma / sigma[0]).clip(1e-9)))
    labels = list(dict.fromkeys([*study.scaling, *(study.method_of(name) or name for name in spectra)]))
    count = max(1, len(widths))
    figure = Figure(figsize=(max(7, 2.7 * count), 3.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    known = {}
    for axes, (width, lines) in zip(panels, sorted(widths.items()), strict=False):
        for label, logs in lines.items():
            length = min(map(len, logs))
            mean = 10 ** np.mean([values[:length] for values in logs], axis=0)
            (known[label],) = axes.plot(
                np.arange(1, length + 1), mean, markevery=max(1, length // 8), **_style(labels.index(label))
            )
        axes.set_title(f"width {width}", loc="left")
        axes.set_xlabel("singular value")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("over the largest")
    ordered = sorted(known, key=labels.index)
    legend = figure.legend(
        [known[label] for label in ordered],
        ordered,
        loc="outside upper left",
        ncols=min(6, len(ordered) or 1),
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
