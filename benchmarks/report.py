"""The report of a study: its table (terminal, Markdown, CSV) and its curves, from finished run folders."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from benchmarks.bootstrap import Gain, ne_gain, read_predictions
from trainer.errors import UserError
from trainer.metrics import binary_metrics

METRICS = {"NE": "ne", "AUC": "auc", "gAUC": "gauc", "LogLoss": "logloss"}
"""Metrics of the table, and their names in result.json."""

COLUMNS = ("variant", *METRICS, "NE gain (%)", "embedding parameters", "dense parameters", "rows/s")
BAYES = "Bayes optimum"
MISSING = "–"

# Okabe and Ito's colours, which the colour-blind can tell apart; line and marker do so in black and white.
STYLES = [
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#56B4E9", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#E69F00", (0, (8, 2)), "P"),
    ("#000000", (0, (1, 1)), "X"),
]

WARM_UP = 0.1
"""First share of the examples that left out of a plot's range: NE falls steeply there, and hides the rest."""


@dataclass(frozen=True)
class Row:
    """One line of the table; what is unknown or does not apply is missing or None."""

    variant: str
    component: str | None = None
    metrics: dict[str, list[float]] = field(default_factory=dict)  # a value per seed, by METRICS' titles
    gain: Gain | None = None
    embedding_parameters: int | None = None
    dense_parameters: int | None = None
    rows_per_second: float | None = None


class Curve(NamedTuple):
    """A figure along training: number of examples `[T]`, values `[seeds, T]`."""

    rows: NDArray[np.float64]
    values: NDArray[np.float64]


def write_report(
    runs: Mapping[str, Sequence[Path]],
    *,
    baseline: str,
    split: str,
    out: Path,
    title: str,
    description: str,
    appendix: str,
    console: Console,
) -> None:
    """Print the table; write report.md, table.csv, ne_curves.png and gain.png into `out`.

    Args:
        runs: Finished run folders of each variant, one per seed, seeds in the same order.
        baseline: The variant that gains are against.
        split: The evaluation split of the table.
        out: Folder of the report.
        title: Heading of the report and of the plots.
        description: Markdown under the heading.
        appendix: Markdown at the end.
        console: Where the table is printed.

    Raises:
        UserError: a run lacks the split, or its files cannot be read or compared.
    """
    rows = table_rows(runs, baseline, split)
    _print_table(rows, f"{title} ({split})", console)
    _write_csv(rows, out / "table.csv")
    bayes = next((row.metrics["NE"][0] for row in rows if row.variant == BAYES and row.metrics["NE"]), None)
    window = {variant: _curve(folders, "ne/window/fused") for variant, folders in runs.items()}
    lifetime = {variant: _curve(folders, "ne/lifetime/fused") for variant, folders in runs.items()}
    _plot_ne(window, bayes, title, split, out / "ne_curves.png")
    _plot_gain(lifetime, baseline, title, out / "gain.png")
    paragraphs = [
        f"# {title}",
        description.strip(),
        _markdown_table(rows),
        _reading(rows, runs[baseline], split, baseline),
        "![Progressive NE against the number of examples](ne_curves.png)",
        f"![NE gain over {baseline} against the number of examples](gain.png)",
        appendix.strip(),
    ]
    (out / "report.md").write_text("\n\n".join(filter(None, paragraphs)) + "\n")
    console.print(f"report: {out / 'report.md'}", highlight=False, markup=False, soft_wrap=True)


def table_rows(runs: Mapping[str, Sequence[Path]], baseline: str, split: str) -> list[Row]:
    """The table: each variant, its components if it has several, then the Bayes optimum where it is known."""
    predictions = {
        variant: [folder / "predictions" / f"{split}.parquet" for folder in folders]
        for variant, folders in runs.items()
    }
    rows = []
    for variant, folders in runs.items():
        results = [_read_result(folder) for folder in folders]
        splits = [
            _split_result(result, split, folder) for result, folder in zip(results, folders, strict=True)
        ]
        gain = None if variant == baseline else ne_gain(predictions[baseline], predictions[variant])
        rows.append(
            Row(
                variant,
                metrics=_metrics(splits, "fused"),
                gain=gain,
                embedding_parameters=results[0]["parameters"]["tables"],
                dense_parameters=results[0]["parameters"]["dense"],
                rows_per_second=fmean(result["rows_per_second"] for result in results),
            )
        )
        components = [key.removeprefix("ne/") for key in splits[0] if key.startswith("ne/")]
        components.remove("fused")
        if len(components) > 1:
            rows += [Row(variant, component, _metrics(splits, component)) for component in components]
    truth = read_predictions(predictions[baseline][0])
    if "true_probability" in truth:
        rows.append(_bayes_row(truth))
    return rows


def _bayes_row(predictions: dict[str, NDArray[Any]]) -> Row:
    """Metrics of the probability that the labels were drawn from: no model can be expected to do better."""
    metrics = binary_metrics(
        predictions["label"], predictions["true_probability"], predictions["weight"], predictions.get("group")
    )
    return Row(BAYES, metrics={title: _finite([metrics.get(name)]) for title, name in METRICS.items()})


def _metrics(splits: Sequence[dict[str, Any]], model: str) -> dict[str, list[float]]:
    return {
        title: _finite([result.get(f"{name}/{model}") for result in splits])
        for title, name in METRICS.items()
    }


def _finite(values: Sequence[float | None]) -> list[float]:
    """The values that are known; a gAUC without groups is None or NaN."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _read_result(folder: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / 'result.json'}: cannot be read ({error}); repeat the run") from None
    return result


def _split_result(result: dict[str, Any], split: str, folder: Path) -> dict[str, Any]:
    if split not in result["splits"]:
        known = ", ".join(result["splits"]) or "none"
        raise UserError(
            f"{folder}: not evaluated on split {split!r}, only on {known}; change the study's split"
        )
    metrics: dict[str, Any] = result["splits"][split]
    return metrics


# --- table ---------------------------------------------------------------------------------------------


def _cells(row: Row) -> list[str]:
    """The row's text in the order of COLUMNS, without the name."""
    metrics = [_spread(row.metrics.get(title, [])) for title in METRICS]
    gain = MISSING
    if row.gain is not None:
        gain = f"{row.gain.point:+.3f} [{row.gain.low:+.3f}, {row.gain.high:+.3f}]"
    return [
        *metrics,
        gain,
        *(_short(n) for n in (row.embedding_parameters, row.dense_parameters, row.rows_per_second)),
    ]


def _spread(values: Sequence[float]) -> str:
    """Mean, with the standard deviation of a sample where there are two values or more."""
    if not values:
        return MISSING
    return f"{fmean(values):.5f}" + (f" ± {stdev(values):.5f}" if len(values) > 1 else "")


def _short(number: float | None) -> str:
    """Three significant digits: 12.3M."""
    if number is None:
        return MISSING
    exponent = min(3, max(0, int(math.log10(max(number, 1)) // 3)))
    return f"{number / 1000**exponent:.3g}{['', 'k', 'M', 'G'][exponent]}"


def _print_table(rows: Sequence[Row], title: str, console: Console) -> None:
    # Two lines a row and no vertical rules, so that it fits a terminal of 100 columns; the sizes and the
    # speed, which the report has too, give way on a narrower one.
    columns = COLUMNS[1:] if console.width >= 100 else COLUMNS[1:-3]
    table = Table(
        title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False
    )
    table.add_column("variant", overflow="fold", min_width=14)
    for column in columns:
        heading = (
            column.replace(" (", "\n(").replace(" parameters", "\nparams").replace("embedding", "embed.")
        )
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = Padding(row.component, (0, 0, 0, 2)) if row.component else row.variant
        cells = [cell.replace(" ± ", "\n±").replace(" [", "\n[") for cell in _cells(row)][: len(columns)]
        table.add_row(name, *cells, style="dim" if row.component else None)
    console.print(table)


def _markdown_table(rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|:--|{'--:|' * (len(COLUMNS) - 1)}"]
    for row in rows:
        name = f"&emsp;{row.component}" if row.component else row.variant
        lines.append(f"| {' | '.join([name, *_cells(row)])} |")
    return "\n".join(lines)


def _reading(rows: Sequence[Row], baseline_runs: Sequence[Path], split: str, baseline: str) -> str:
    """How to read the table, in Markdown."""
    num_seeds = len(baseline_runs)
    result = _read_result(baseline_runs[0])
    sentences = [
        f"Split `{split}`, {result['splits'][split]['rows']:,} rows, after training on {result['rows']:,}.",
        f"Metrics are the mean ± standard deviation of {num_seeds} seeds." if num_seeds > 1 else "One seed.",
        f"NE gain is relative to `{baseline}`, negative is better; in brackets its 95 % interval by paired",
        "bootstrap over the evaluation's groups (rows, where there are none): it covers the choice of the",
        "evaluation data, not the spread between seeds.",
    ]
    if any(row.component for row in rows):
        sentences.append("Indented rows are an ensemble's components on their own.")
    if rows[-1].variant == BAYES:
        sentences.append(f"{BAYES}: the probabilities that the synthetic labels were drawn from.")
    if num_seeds > 1:
        sentences.append(
            "In the plots, lines are means over the seeds, bands reach from the lowest to the highest."
        )
    sentences.append(
        f"Written on {date.today()}; each run's `environment.json` has its machine and versions."
    )
    return "\n".join(sentences)


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    """The table with full precision: a column for each mean, deviation and bound; unknown is empty."""
    header = ["variant", "component"]
    header += [column for title in METRICS for column in (title, f"{title} std")]
    header += ["NE gain (%)", "NE gain low (%)", "NE gain high (%)", *COLUMNS[-3:]]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            line: list[Any] = [row.variant, row.component]
            for title in METRICS:
                values = row.metrics.get(title, [])
                line += [fmean(values) if values else None, stdev(values) if len(values) > 1 else None]
            line += row.gain or (None, None, None)
            writer.writerow([*line, row.embedding_parameters, row.dense_parameters, row.rows_per_second])


# --- curves --------------------------------------------------------------------------------------------


def _curve(folders: Sequence[Path], key: str) -> Curve:
    """`key` of metrics.jsonl where every seed has it, as one curve; empty if nowhere."""
    seeds = [_read_series(folder / "metrics.jsonl", key) for folder in folders]
    rows = sorted(set.intersection(*(set(series) for series in seeds)))
    values = np.array([[series[n] for n in rows] for series in seeds], dtype=np.float64)
    return Curve(np.array(rows, dtype=np.float64), values)


def _read_series(path: Path, key: str) -> dict[int, float]:
    """Number of examples -> value, from the training records; of a step done twice (resumed), the last."""
    series = {}
    try:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["kind"] == "train" and _finite([record.get(key)]):
                series[record["rows"]] = record[key]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); repeat the run") from None
    return series


def _plot_ne(curves: Mapping[str, Curve], bayes: float | None, title: str, split: str, path: Path) -> None:
    """Windowed NE of each variant, every batch scored before it is learned from."""
    references = {} if bayes is None else {f"{BAYES} ({split})": bayes}
    _plot(
        curves,
        title=f"{title}: progressive NE",
        ylabel="NE over the last window (lower is better)",
        label="{name}  {value:.4f}".format,
        references=references,
        path=path,
    )


def _plot_gain(curves: Mapping[str, Curve], baseline: str, title: str, path: Path) -> None:
    """NE gain of each variant's lifetime NE over the baseline's with the same seed."""
    base = curves[baseline]
    gains = {}
    for variant, curve in curves.items():
        # Variants whose batches differ log at other points: compare where both are known.
        known = (curve.rows >= base.rows.min(initial=np.inf)) & (curve.rows <= base.rows.max(initial=0))
        rows = curve.rows[known]
        expected = [np.interp(rows, base.rows, values) if len(rows) else rows for values in base.values]
        gains[variant] = Curve(rows, 100 * (curve.values[:, known] / np.array(expected) - 1))
    _plot(
        gains,
        title=f"{title}: NE gain over {baseline}",
        ylabel="NE gain since the start (%, negative is better)",
        label="{name}  {value:+.3f} %".format,
        references={},
        path=path,
    )


def _plot(
    curves: Mapping[str, Curve],
    *,
    title: str,
    ylabel: str,
    label: Callable[..., str],
    references: Mapping[str, float],
    path: Path,
) -> None:
    """Lines with bands, labelled at their ends; `references` are horizontal lines."""
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    ends = []
    shown: list[float] = list(references.values())
    for index, (name, curve) in enumerate(curves.items()):
        color, line, marker = STYLES[index % len(STYLES)]
        if not len(curve.rows):
            continue
        mean, lowest, highest = (reduce(curve.values, axis=0) for reduce in (np.mean, np.min, np.max))
        axes.plot(
            curve.rows,
            mean,
            color=color,
            linestyle=line,
            marker=marker,
            # Each line has its markers elsewhere, so that lines on top of each other can be seen.
            markevery=(0.1 * index / len(curves), 0.1),
            markersize=5,
            linewidth=1.6,
        )
        axes.fill_between(curve.rows, lowest, highest, color=color, alpha=0.18, linewidth=0)
        settled = curve.rows >= WARM_UP * curve.rows[-1]
        shown += [lowest[settled].min(), highest[settled].max()]
        ends.append((curve.rows[-1], mean[-1], label(name=name, value=mean[-1]), color))
    for name, value in references.items():
        axes.axhline(value, color="0.35", linestyle=(0, (6, 4)), linewidth=1)
        ends.append((axes.get_xlim()[1], value, label(name=name, value=value), "0.35"))
    axes.set_title(title, loc="left")
    several = any(len(curve.values) > 1 for curve in curves.values())
    axes.set_xlabel("training examples" + " (line: mean of the seeds, band: lowest to highest)" * several)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        margin = 0.06 * (max(shown) - min(shown)) or 0.01
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    _label_ends(axes, ends)
    figure.savefig(path)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each (x, y, text, colour) right of the plot at its height, moved up where texts would overlap."""
    low, high = axes.get_ylim()
    lowest = low
    for x, y, text, color in sorted(ends, key=lambda end: end[1]):
        height = max(y, lowest)
        lowest = height + 0.05 * (high - low)
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.02, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.6},
        )
