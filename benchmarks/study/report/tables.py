"""The columns of a study's tables, and all of them as CSV."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cetnet.benchmarks.study.report.comparisons import EFFECT, Pairing
from cetnet.benchmarks.study.report.document import Cell, Column
from cetnet.benchmarks.study.report.intervals import FEWEST, Estimate, Gain
from cetnet.benchmarks.study.report.rows import (
    CALIBRATED,
    COSTS,
    FURTHER,
    GAINS,
    METRICS,
    PROGRESSIVE,
    SIZES,
    WINDOW,
    Row,
    finite,
    gain_of,
)


def metric_columns(rows: Sequence[Row], every: Sequence[Row]) -> list[Column]:
    """Number of seeds if it differs among `every` row of the report; metrics, each followed by the published one
    if there is any; sizes and speed."""
    columns = seeds_column(rows, every)
    for title in ("NE", PROGRESSIVE, "AUC", "gAUC"):
        columns += _metric(title, rows)
    forms = {"seconds a million rows": lambda values: spread(values, "{:.1f}")}
    return columns + [
        Column(title, [forms.get(title, _short)(row.costs.get(title, [])) for row in rows]) for title in SIZES
    ]


def further_columns(rows: Sequence[Row], every: Sequence[Row]) -> list[Column]:
    """Number of seeds if it differs among `every` row of the report; the metrics that the first table hasn't."""
    columns = seeds_column(rows, every)
    for title in (CALIBRATED, WINDOW, "LogLoss"):
        columns += _metric(title, rows)
    return columns


def _metric(title: str, rows: Sequence[Row]) -> list[Column]:
    ours = Column(title, [spread(row.metrics.get(title, []), "{:.5f}") for row in rows])
    return [ours, _paper_column([row.published.get(title) for row in rows], _level)]


def gain_columns(rows: Sequence[Row], every: Sequence[Row]) -> list[Column]:
    """Number of seeds if it differs among `every` row of the report; gains with intervals, each followed by the
    published one if there is any; what they say in words."""
    columns = seeds_column(rows, every, paired=True)
    columns += _gain("NE gain (%)", rows)
    words = [row.comparison.verdict if row.comparison else "" for row in rows]
    columns.append(Column("verdict", [Cell(text, text) if text else Cell() for text in words], is_text=True))
    for title in (gain_of(PROGRESSIVE), "AUC gain (pp)", "gAUC gain (pp)"):
        columns += _gain(title, rows)
    return columns


def sureness_columns(rows: Sequence[Row], every: Sequence[Row]) -> list[Column]:
    """Number of seeds if it differs among `every` row of the report; how sure the verdicts are, and further gains."""
    judged = [row.comparison.estimate if row.comparison else None for row in rows]
    pairings = [row.pairing for row in rows]

    def of(what: Estimate | Pairing | None, name: str) -> float:
        return getattr(what, name) if what else math.nan

    def column(heading: str, form: Callable[[float], str], numbers: Sequence[float]) -> Column:
        return Column(heading, [Cell() if math.isnan(n) else Cell(form(n), n) for n in numbers])

    needed = [each.seeds_to_see(EFFECT) if each else math.nan for each in judged]
    return [
        *seeds_column(rows, every, paired=True),
        column("p (Holm)", _probability, [row.comparison.p if row.comparison else math.nan for row in rows]),
        column("smallest effect seen (%)", "{:.2f}".format, [of(each, "smallest_seen") for each in judged]),
        column(f"seeds to see {EFFECT} %", _count, needed),
        column("rows alone (± %)", "{:.3f}".format, [of(each, "data") for each in judged]),
        column("seeds correlate", "{:+.2f}".format, [of(each, "correlation") for each in pairings]),
        column("pairing saves (%)", "{:.0f}".format, [100 * of(each, "saved") for each in pairings]),
        *_gain(gain_of(CALIBRATED), rows),
        *_gain(gain_of(WINDOW), rows),
    ]


def _gain(title: str, rows: Sequence[Row]) -> list[Column]:
    cells = []
    for row in rows:
        several = title not in row.estimates or len(row.estimates[title].seeds) >= FEWEST
        cells.append(gain_cell(gain, several) if (gain := row.gain(title)) else Cell())
    published = [row.published_gains.get(title) for row in rows]
    return [Column(title, cells), _paper_column(published, "{:+.3f}".format)]


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _count(number: float) -> str:
    return "∞" if math.isinf(number) else f"{number:,.0f}"


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
    return max((row.paired_seeds or 0 for row in rows if row.estimates), default=0)


def seeds_column(rows: Sequence[Row], every: Sequence[Row], *, paired: bool = False) -> list[Column]:
    """Nothing where all rows of the report, `every`, have the same; else a row's seeds, or those of its gain."""
    numbers = {row.seeds for row in every} | {row.paired_seeds for row in every if row.estimates}
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
    header, metrics = ["variant", "component", "seeds"], (*METRICS, *FURTHER)
    header += [f"{title}{suffix}" for title in metrics for suffix in ("", " std")]
    gains = [*GAINS, *map(gain_of, FURTHER)]
    header += [title.replace(" (", f"{bound} (") for title in gains for bound in ("", " low", " high")]
    header += ["verdict", "p (Holm)"]
    header += [f"paper {title}" for title in (*METRICS, *GAINS)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *COSTS])
        for row in rows:
            line: list[Any] = [row.variant, row.component, row.seeds]
            for title in metrics:
                values = row.metrics.get(title, [])
                line += [fmean(values) if values else None, stdev(values) if len(values) > 1 else None]
            for title in gains:
                gain = row.gain(title) or ()
                line += gain if finite(gain) else (None, None, None)
            said = row.comparison
            line += [said.verdict, said.p if math.isfinite(said.p) else None] if said else [None, None]
            line += [row.published.get(title) for title in METRICS]
            line += [row.published_gains.get(title) for title in GAINS]
            for title in COSTS:
                values = row.costs.get(title, [])
                mean = max if title == "peak memory (bytes)" else fmean
                line.append(values[0] if len(set(values)) == 1 else mean(values) if values else None)
            writer.writerow(line)
