"""The columns of a study's tables, and all of them as CSV."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cetnet.benchmarks.study.report.bootstrap import Gain
from cetnet.benchmarks.study.report.curves import Curve, final
from cetnet.benchmarks.study.report.document import Cell, Column
from cetnet.benchmarks.study.report.rows import COSTS, GAINS, METRICS, SIZES, Row, finite


def metric_columns(rows: Sequence[Row], every: Sequence[Row]) -> list[Column]:
    """Number of seeds if it differs among `every` row of the report; metrics, each followed by the published one
    if there is any; sizes and speed."""
    columns = seeds_column(rows, every)
    for title in METRICS:
        ours = Column(title, [spread(row.metrics.get(title, []), "{:.5f}") for row in rows])
        columns += [ours, _paper_column([row.published.get(title) for row in rows], _level)]
    for title in SIZES:
        columns.append(Column(title, [_short(row.costs.get(title, [])) for row in rows]))
    return columns


def gain_columns(rows: Sequence[Row], every: Sequence[Row]) -> list[Column]:
    """Number of seeds if it differs among `every` row of the report; gains with intervals, each followed by the
    published one if there is any."""
    columns = seeds_column(rows, every, paired=True)
    most = most_paired(every)
    for title, name in GAINS.items():
        ours = Column(title, [])
        for row in rows:
            bold = most == 1 or (row.paired_seeds or 0) > 2
            ours.cells.append(gain_cell(getattr(row.gains, name), bold) if row.gains else Cell())
        columns += [ours, _paper_column([row.published_gains.get(title) for row in rows], "{:+.3f}".format)]
    return columns


def progressive_columns(
    rows: Sequence[Row], lifetime: Mapping[str, Curve], gains: Mapping[str, Curve], every: Sequence[Row]
) -> list[Column]:
    """NE over all of training, each batch scored before it is learned from, and its gain; curves by variant.

    Both are of the seeds and at the number of examples that the baseline has too.
    """
    columns = {
        title: Column(title, [])
        for title in ("examples", "NE since the start", "NE gain since the start (%)")
    }
    for row in rows:
        curve, gain = lifetime[row.variant], gains[row.variant]
        if not gain.values.size:
            cells = [Cell(), Cell(), Cell()]
        else:
            last = curve.rows == gain.rows[-1]
            ends = [curve.values[curve.seeds.index(seed), last].item() for seed in gain.seeds]
            bold = len(gain.seeds) > 2
            cells = [
                Cell(f"{gain.rows[-1]:,.0f}", gain.rows[-1]),
                spread(ends, "{:.5f}"),
                Cell() if row.is_baseline else gain_cell(final(gain), bold),
            ]
        for column, cell in zip(columns.values(), cells, strict=True):
            column.cells.append(cell)
    return [*seeds_column(rows, every, paired=True), *columns.values()]


def cost_columns(rows: Sequence[Row]) -> list[Column]:
    """What every variant of the report takes: bytes, parameters, seconds."""

    def column(title: str, form: Callable[[Sequence[float]], Cell]) -> Column:
        return Column(title.removesuffix(" (bytes)"), [form(row.costs.get(title, [])) for row in rows])

    return [
        *seeds_column(rows, rows),
        column("embedding parameters", _short),
        column("embedding bytes", lambda values: _short(values, "B")),
        column("dense parameters", _short),
        column("training seconds", lambda values: spread(values, "{:.1f}")),
        column("rows/s", lambda values: spread(values, "{:,.0f}")),
        column("peak memory (bytes)", lambda values: _short([max(values)] if values else [], "B")),
    ]


def most_paired(rows: Sequence[Row]) -> int:
    """Most seeds that a gain is over: a row with one seed, where others have more, lacks their spread."""
    return max((row.paired_seeds or 0 for row in rows if row.gains), default=0)


def seeds_column(rows: Sequence[Row], every: Sequence[Row], *, paired: bool = False) -> list[Column]:
    """Nothing where all rows of the report, `every`, have the same; else a row's seeds, or those of its gain."""
    numbers = {row.seeds for row in every} | {row.paired_seeds for row in every if row.gains}
    if len(numbers - {None}) <= 1:
        return []
    seeds = [row.paired_seeds if paired and not row.is_baseline else row.seeds for row in rows]
    return [Column("seeds", [Cell() if number is None else Cell(str(number), number) for number in seeds])]


def _paper_column(published: Sequence[float | None], form: Callable[[float], str]) -> Column:
    return Column("paper", [Cell() if value is None else Cell(form(value), value) for value in published])


def _level(value: float) -> str:
    """Four decimals, or five where there are as many."""
    return f"{value:.5f}".removesuffix("0")


def spread(values: Sequence[float], form: str) -> Cell:
    """Mean, with the standard deviation of a sample where there are two values or more."""
    if not values:
        return Cell()
    mean = fmean(values)
    return Cell(form.format(mean), mean, f"± {form.format(stdev(values))}" if len(values) > 1 else "")


def gain_cell(gain: Gain, bold: bool) -> Cell:
    """A gain with its interval; `bold` if that is without 0 and covers what others' do."""
    if not math.isfinite(gain.point):
        return Cell()
    if not math.isfinite(gain.low):  # a few groups, as in a smoke run, may have no interval
        return Cell(f"{gain.point:+.3f}", gain.point)
    significant = bold and (gain.low > 0 or gain.high < 0)
    return Cell(f"{gain.point:+.3f}", gain.point, f"[{gain.low:+.3f}, {gain.high:+.3f}]", significant)


def _short(values: Sequence[float], unit: str = "") -> Cell:
    if not values:
        return Cell()
    return Cell(short_number(fmean(values), unit), fmean(values))


def short_number(number: float, unit: str = "") -> str:
    """Three significant digits and a prefix: 12.3M, or 12.3 MB."""
    exponent = min(3, max(0, int(math.log10(max(number, 1)) // 3)))
    return f"{number / 1000**exponent:.3g}{' ' if unit else ''}{['', 'k', 'M', 'G'][exponent]}{unit}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The tables with full precision: a column for each mean, deviation and bound; unknown is empty."""
    header = ["variant", "component", "seeds"]
    header += [f"{title}{suffix}" for title in METRICS for suffix in ("", " std")]
    header += [title.replace(" (", f"{bound} (") for title in GAINS for bound in ("", " low", " high")]
    header += [f"paper {title}" for title in (*METRICS, *GAINS)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *COSTS])
        for row in rows:
            line: list[Any] = [row.variant, row.component, row.seeds]
            for title in METRICS:
                values = row.metrics.get(title, [])
                line += [fmean(values) if values else None, stdev(values) if len(values) > 1 else None]
            for name in GAINS.values():
                gain = getattr(row.gains, name) if row.gains else ()
                line += gain if finite(gain) else (None, None, None)
            line += [row.published.get(title) for title in METRICS]
            line += [row.published_gains.get(title) for title in GAINS]
            for title in COSTS:
                values = row.costs.get(title, [])
                mean = max if title == "peak memory (bytes)" else fmean
                line.append(values[0] if len(set(values)) == 1 else mean(values) if values else None)
            writer.writerow(line)
