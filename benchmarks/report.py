"""The report of a study: its tables (terminal, Markdown, CSV) and plots, from finished run folders."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from benchmarks.bootstrap import Baseline, Gain, Gains, read_predictions
from benchmarks.plots import plot_gain, plot_ne, read_curve
from trainer.errors import UserError
from trainer.metrics import binary_metrics

METRICS = {"NE": "ne", "AUC": "auc", "gAUC": "gauc", "LogLoss": "logloss"}
"""Metrics of the table, and their names in result.json."""

GAINS = {"NE gain (%)": "ne", "AUC gain (pp)": "auc", "gAUC gain (pp)": "gauc"}
"""Gains of the table, and their names in `Gains`."""

SIZES = ("embedding parameters", "dense parameters", "rows/s")
BAYES = "Bayes optimum"
MISSING = "–"


class Numbers(BaseModel):
    """Published numbers of a variant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gauc: float | None = None
    auc: float | None = None
    logloss: float | None = None
    ne_gain: float | None = Field(None, description="In percent. Default: from `logloss`.")


class Paper(BaseModel):
    """Published numbers that a report shows beside its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="Where they are published, and what they were measured on.")
    numbers: dict[str, Numbers] = Field(
        description="Of variants; `<variant>/<component>` is a component inside of an ensemble."
    )


@dataclass(frozen=True)
class Row:
    """A model of the tables; what is unknown or does not apply is missing or None."""

    variant: str
    component: str | None = None
    seeds: int | None = None
    paired_seeds: int | None = None  # those that the baseline has too, which gains are over
    metrics: dict[str, list[float]] = field(default_factory=dict)  # a value per seed, by METRICS' titles
    gains: Gains | None = None
    published: dict[str, float] = field(default_factory=dict)  # by METRICS' titles
    published_gains: dict[str, float] = field(default_factory=dict)  # by GAINS' titles
    sizes: tuple[float | None, float | None, float | None] = (None, None, None)


class Column(NamedTuple):
    """A column of a table, with a cell for each row."""

    heading: str
    cells: list[str]


def write_report(
    runs: Mapping[str, Mapping[int, Path]],
    *,
    sections: Mapping[str, Sequence[str]],
    split: str,
    components: bool,
    paper: Paper | None,
    out: Path,
    title: str,
    description: str,
    appendix: str,
    console: Console,
) -> None:
    """Print the tables; write report.md, table.csv and the plots into `out`.

    Args:
        runs: Finished run folders of each variant by seed.
        sections: For each baseline, the variants that are compared with it, itself included.
        split: The evaluation split of the tables.
        components: Whether the tables list the components of ensembles.
        paper: Published numbers.
        out: Folder of the report.
        title: Heading of the report and of the plots.
        description: Markdown under the heading.
        appendix: Markdown at the end.
        console: Where the tables are printed.

    Raises:
        UserError: a run lacks the split, or its files cannot be read or compared.
    """
    rows = table_rows(runs, sections, split, components, paper)
    several = len(sections) > 1  # then each baseline heads its own
    gain_rows = [row for row in rows if row.gains or (several and row.variant in sections)]
    metrics, gains = metric_columns(rows), gain_columns(gain_rows)
    _print_table(rows, metrics, f"{title} ({split})", console)
    if gain_rows:
        against = "the baseline above, a row of –" if several else next(iter(sections))
        _print_table(gain_rows, gains, f"Gains over {against}", console)
    _write_csv(rows, out / "table.csv")
    paragraphs = [
        f"# {title}",
        description.strip(),
        _markdown_table(rows, metrics),
        _markdown_table(gain_rows, gains) if gain_rows else "",
        _reading(rows, next(iter(next(iter(runs.values())).values())), split, list(sections), paper),
    ]
    paragraphs += _write_plots(runs, sections, rows, split, title, out)
    paragraphs.append(appendix.strip())
    (out / "report.md").write_text("\n\n".join(filter(None, paragraphs)) + "\n")
    console.print(f"report: {out / 'report.md'}", highlight=False, markup=False, soft_wrap=True)


def table_rows(
    runs: Mapping[str, Mapping[int, Path]],
    sections: Mapping[str, Sequence[str]],
    split: str,
    components: bool,
    paper: Paper | None,
) -> list[Row]:
    """Each variant, its components if it has several, then the Bayes optimum where it is known."""
    results = {
        variant: [_read_result(folder, split) for folder in folders.values()]
        for variant, folders in runs.items()
    }
    rows = []
    for baseline, variants in sections.items():
        base = Baseline(_predictions(runs[baseline], split))
        for variant in variants:
            paired = len(runs[variant].keys() & runs[baseline].keys())
            splits = [result["splits"][split] for result in results[variant]]
            outputs = [key.removeprefix("ne/") for key in splits[0] if key.startswith("ne/")]
            outputs.remove("fused")
            parameters = results[variant][0]["parameters"]
            speed = fmean(result["rows_per_second"] for result in results[variant])
            for output in ["fused", *(outputs if components and len(outputs) > 1 else [])]:
                component = None if output == "fused" else output
                itself = variant == baseline and component is None
                published, published_gains = _published(paper, variant, component, baseline)
                rows.append(
                    Row(
                        variant,
                        component,
                        seeds=len(runs[variant]),
                        paired_seeds=None if itself else paired,
                        metrics=_metrics(splits, output),
                        gains=None if itself else base.gains(_predictions(runs[variant], split), output),
                        published=published,
                        published_gains={} if itself else published_gains,
                        sizes=(None, None, None)
                        if component
                        else (parameters["tables"], parameters["dense"], speed),
                    )
                )
    truth = read_predictions(next(iter(_predictions(next(iter(runs.values())), split).values())))
    if "true_probability" in truth:
        rows.append(_bayes_row(truth))
    return rows


def _predictions(folders: Mapping[int, Path], split: str) -> dict[int, Path]:
    return {seed: folder / "predictions" / f"{split}.parquet" for seed, folder in folders.items()}


def _bayes_row(predictions: dict[str, NDArray[Any]]) -> Row:
    """Metrics of the probability that the labels were drawn from: no model can be expected to do better."""
    metrics = binary_metrics(
        predictions["label"], predictions["true_probability"], predictions["weight"], predictions.get("group")
    )
    return Row(BAYES, metrics={title: _finite([metrics.get(name)]) for title, name in METRICS.items()})


def _published(
    paper: Paper | None, variant: str, component: str | None, baseline: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Published metrics of a row by METRICS' titles, and its gains over the published baseline by GAINS'."""
    nothing = Numbers()
    numbers = paper.numbers if paper else {}
    new = numbers.get(f"{variant}/{component}" if component else variant, nothing)
    base = numbers.get(baseline, nothing)
    metrics = {title: getattr(new, name, None) for title, name in METRICS.items()}
    gains = {
        "NE gain (%)": new.ne_gain,
        "AUC gain (pp)": _and(new.auc, base.auc, lambda after, before: 100 * (after - before)),
        "gAUC gain (pp)": _and(new.gauc, base.gauc, lambda after, before: 100 * (after - before)),
    }
    if new.ne_gain is None:
        # The base rate is that of the same rows, so NE changes as LogLoss does.
        gains["NE gain (%)"] = _and(
            new.logloss, base.logloss, lambda after, before: 100 * (after / before - 1)
        )
    return _known(metrics), _known(gains)


def _and(a: float | None, b: float | None, f: Callable[[float, float], float]) -> float | None:
    return None if a is None or b is None else f(a, b)


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


def _metrics(splits: Sequence[dict[str, Any]], model: str) -> dict[str, list[float]]:
    return {
        title: _finite([result.get(f"{name}/{model}") for result in splits])
        for title, name in METRICS.items()
    }


def _finite(values: Sequence[float | None]) -> list[float]:
    """The values that are known; a gAUC without groups is None or NaN."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _read_result(folder: Path, split: str) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / 'result.json'}: cannot be read ({error}); repeat the run") from None
    if split not in result["splits"]:
        known = ", ".join(result["splits"]) or "none"
        raise UserError(
            f"{folder}: not evaluated on split {split!r}, only on {known}; change the study's split"
        )
    return result


# --- tables --------------------------------------------------------------------------------------------


def metric_columns(rows: Sequence[Row]) -> list[Column]:
    """Number of seeds if it differs; metrics, each followed by the published one if there is any; sizes and speed."""
    columns = _seeds_column([row.seeds for row in rows])
    for title in METRICS:
        ours = [_spread(row.metrics.get(title, [])) for row in rows]
        columns += _beside_paper(title, ours, [row.published.get(title) for row in rows], _level)
    for index, title in enumerate(SIZES):
        columns.append(Column(title, [_short(row.sizes[index]) for row in rows]))
    return columns


def gain_columns(rows: Sequence[Row]) -> list[Column]:
    """Number of seeds if it differs; gains with intervals, each followed by the published one if there is any."""
    columns = _seeds_column([row.paired_seeds for row in rows])
    for title, name in GAINS.items():
        ours = [_interval(getattr(row.gains, name)) if row.gains else MISSING for row in rows]
        columns += _beside_paper(
            title, ours, [row.published_gains.get(title) for row in rows], "{:+.3f}".format
        )
    return columns


def _seeds_column(seeds: Sequence[int | None]) -> list[Column]:
    """Nothing where all are the same."""
    if len(set(seeds) - {None}) <= 1:
        return []
    return [Column("seeds", [MISSING if number is None else str(number) for number in seeds])]


def _beside_paper(
    title: str, ours: list[str], published: list[float | None], form: Callable[[float], str]
) -> list[Column]:
    """Our column, left out if nothing of it is known, and the published one, likewise."""
    paper = [MISSING if value is None else form(value) for value in published]
    columns = [Column(title, ours), Column("paper", paper)]
    return [column for column in columns if set(column.cells) != {MISSING}]


def _level(value: float) -> str:
    """Four decimals, or five where there are as many."""
    return f"{value:.5f}".removesuffix("0")


def _spread(values: Sequence[float]) -> str:
    """Mean, with the standard deviation of a sample where there are two values or more."""
    if not values:
        return MISSING
    return f"{fmean(values):.5f}" + (f" ± {stdev(values):.5f}" if len(values) > 1 else "")


def _interval(gain: Gain) -> str:
    if not math.isfinite(gain.point):
        return MISSING
    # A few groups, as in a smoke run, may have no interval.
    return f"{gain.point:+.3f}" + (f" [{gain.low:+.3f}, {gain.high:+.3f}]" if math.isfinite(gain.low) else "")


def _short(number: float | None) -> str:
    """Three significant digits: 12.3M."""
    if number is None:
        return MISSING
    exponent = min(3, max(0, int(math.log10(max(number, 1)) // 3)))
    return f"{number / 1000**exponent:.3g}{['', 'k', 'M', 'G'][exponent]}"


def _print_table(rows: Sequence[Row], columns: Sequence[Column], title: str, console: Console) -> None:
    # Two lines a row and no vertical rules, so that it fits a terminal of 100 columns; the sizes and the
    # speed, which the report has too, give way where they don't fit.
    num_published = sum(column.heading == "paper" for column in columns)
    if console.width < 100 + 9 * num_published:
        columns = [column for column in columns if column.heading not in SIZES]
    table = Table(
        title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False
    )
    table.add_column("variant", overflow="fold", min_width=14)
    for column in columns:
        heading = column.heading.replace(" (", "\n(").replace(" parameters", "\nparams")
        table.add_column(heading.replace("embedding", "embed."), justify="right", no_wrap=True)
    for row, *cells in zip(rows, *(column.cells for column in columns), strict=True):
        name = Padding(row.component, (0, 0, 0, 2)) if row.component else row.variant
        cells = [cell.replace(" ± ", "\n±").replace(" [", "\n[") for cell in cells]
        table.add_row(name, *cells, style="dim" if row.component else None)
    console.print(table)


def _markdown_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    lines = [f"| variant | {' | '.join(column.heading for column in columns)} |"]
    lines.append(f"|:--|{'--:|' * len(columns)}")
    for row, *cells in zip(rows, *(column.cells for column in columns), strict=True):
        name = f"&emsp;{row.component}" if row.component else row.variant
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _reading(
    rows: Sequence[Row], first_run: Path, split: str, baselines: Sequence[str], paper: Paper | None
) -> str:
    """How to read the tables, in Markdown."""
    seeds = {row.seeds for row in rows if row.seeds}
    several = max(seeds) > 1
    counted = (
        f"{max(seeds)} seeds" if len(seeds) == 1 else "the seeds, of which column `seeds` has the number"
    )
    result = _read_result(first_run, split)
    sentences = [
        f"Split `{split}`, {result['splits'][split]['rows']:,} rows, after training on {result['rows']:,}.",
        f"Metrics are the mean ± standard deviation of {counted}." if several else "One seed.",
    ]
    if any(row.gains for row in rows):
        against = f"`{baselines[0]}`"
        if len(baselines) > 1:
            against = f"the nearest baseline above ({', '.join(f'`{baseline}`' for baseline in baselines)})"
        sentences += [
            f"Gains are over {against}: of NE in percent of the baseline's, negative is better; of AUC and gAUC in",
            "percentage points, positive is better. In brackets the 95 % interval by paired bootstrap over the",
            "evaluation's groups (rows, where there are none);",
            "it covers the choice of the evaluation data"
            + (
                " and the spread between seeds (Student's t)."
                if several
                else ", not the spread between seeds."
            ),
        ]
    if len(seeds) > 1:
        sentences.append("Gains are over the seeds that both the variant and the baseline have.")
    if paper:
        sentences.append(
            f"Columns `paper`: {paper.source}. Levels depend on data and protocol, so compare the gains."
        )
    if any(row.component for row in rows):
        sentences.append("Indented rows are an ensemble's components on their own.")
    if rows[-1].variant == BAYES:
        sentences.append(f"{BAYES}: the probabilities that the synthetic labels were drawn from.")
    if several:
        sentences.append(
            "In the plots, lines are means over the seeds, bands reach from the lowest to the highest."
        )
    sentences.append(
        f"Written on {date.today()}; each run's `environment.json` has its machine and versions."
    )
    return "\n".join(sentences)


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    """The tables with full precision: a column for each mean, deviation and bound; unknown is empty."""
    header = ["variant", "component"]
    header += [f"{title}{suffix}" for title in METRICS for suffix in ("", " std")]
    header += [title.replace(" (", f"{bound} (") for title in GAINS for bound in ("", " low", " high")]
    header += [f"paper {title}" for title in (*METRICS, *GAINS)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *SIZES])
        for row in rows:
            line: list[Any] = [row.variant, row.component]
            for title in METRICS:
                values = row.metrics.get(title, [])
                line += [fmean(values) if values else None, stdev(values) if len(values) > 1 else None]
            for name in GAINS.values():
                gain = getattr(row.gains, name) if row.gains else ()
                line += gain if _finite(gain) else (None, None, None)
            line += [row.published.get(title) for title in METRICS]
            line += [row.published_gains.get(title) for title in GAINS]
            writer.writerow([*line, *row.sizes])


# --- plots ---------------------------------------------------------------------------------------------


def _write_plots(
    runs: Mapping[str, Mapping[int, Path]],
    sections: Mapping[str, Sequence[str]],
    rows: Sequence[Row],
    split: str,
    title: str,
    out: Path,
) -> list[str]:
    """Two plots for each baseline; returns the Markdown that shows them."""
    bayes = {
        f"{BAYES} ({split})": row.metrics["NE"][0]
        for row in rows
        if row.variant == BAYES and row.metrics["NE"]
    }
    paragraphs = []
    for baseline, variants in sections.items():
        suffix = f"_{baseline}" if len(sections) > 1 else ""
        window = {variant: read_curve(runs[variant], "ne/window/fused") for variant in variants}
        lifetime = {variant: read_curve(runs[variant], "ne/lifetime/fused") for variant in variants}
        plot_ne(window, bayes, title, out / f"ne_curves{suffix}.png")
        plot_gain(lifetime, baseline, title, out / f"gain{suffix}.png")
        paragraphs += [
            f"![Progressive NE against the number of examples](ne_curves{suffix}.png)",
            f"![NE gain over {baseline} against the number of examples](gain{suffix}.png)",
        ]
    return paragraphs
