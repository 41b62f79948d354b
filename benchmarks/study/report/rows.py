"""The numbers of a study: a row for each model, from finished runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from cetnet.benchmarks.study.definition import PROGRESSIVE_NE, Numbers, Paper, Study
from cetnet.benchmarks.study.report.bootstrap import (
    Baseline,
    Gains,
    against_itself,
    calibrated_ne,
    read_predictions,
)
from cetnet.benchmarks.study.report.comparisons import (
    Comparison,
    Pairing,
    compare,
    compare_streams,
    pairing,
    same,
)
from cetnet.benchmarks.study.report.document import Name
from cetnet.benchmarks.study.report.intervals import Estimate, Gain
from cetnet.benchmarks.study.report.progressive import Progressive, progressive_ne, read_stream
from cetnet.benchmarks.study.report.run_files import Folders, predictions, read_config, read_split
from cetnet.benchmarks.study.teachers import is_student
from cetnet.trainer.metrics import binary_metrics, why_missing

METRICS = {"NE": "ne", "AUC": "auc", "gAUC": "gauc", "LogLoss": "logloss"}
"""Metrics of the split, and their names in result.json."""

CALIBRATED, PROGRESSIVE, WINDOW = FURTHER = ("calibrated NE", PROGRESSIVE_NE, "last-window NE")
"""Metrics that result.json doesn't have for the split."""

GAINS = {"NE gain (%)": "ne", "AUC gain (pp)": "auc", "gAUC gain (pp)": "gauc"}
"""Gains of the first table, and their names in `Gains`."""

SIZES = ("embedding parameters", "dense parameters", "multiply-adds a row", "seconds a million rows")
"""The costs that the first table has too."""

COSTS = (*SIZES, "rows/s", "embedding bytes", "training seconds", "peak memory (bytes)")
BAYES = "Bayes optimum"
K = TypeVar("K")


def gain_of(metric: str) -> str:
    """The title of a gain."""
    return f"{metric} gain (%)"


@dataclass(frozen=True)
class Row:
    """A model of the tables; what is unknown or does not apply is missing or None."""

    variant: str
    component: str | None = None
    is_baseline: bool = False
    is_student: bool = False  # which has no NE along training
    seeds: int | None = None
    paired_seeds: int | None = None  # those that the baseline has too, which gains are over
    metrics: dict[str, list[float]] = field(default_factory=dict)  # a value per seed, by METRICS' titles
    estimates: dict[str, Estimate] = field(default_factory=dict)  # of gains, by their titles
    progressive: Progressive | None = None
    comparison: Comparison | None = None
    pairing: Pairing | None = None
    ne: dict[int, float] = field(default_factory=dict)  # of the split, by seed
    window: dict[int, float] = field(default_factory=dict)  # NE of the last window of training, by seed
    against_itself: Gain | None = None  # of a row that compares seeds of the baseline with others of it
    published: dict[str, float] = field(default_factory=dict)  # by METRICS' titles
    published_gains: dict[str, float] = field(default_factory=dict)  # by GAINS' titles
    costs: dict[str, list[float]] = field(default_factory=dict)  # a value per seed, by COSTS
    rows: tuple[int, int] | None = None  # of the Bayes optimum: that its metrics are over, and all

    def gain(self, title: str) -> Gain | None:
        """A gain and its interval, by its title."""
        if title in self.estimates:
            return self.estimates[title].interval
        return self.against_itself if title == "NE gain (%)" else None

    @property
    def name(self) -> Name:
        """As tables show it."""
        if self.component:
            return Name(self.component, is_component=True)
        href = f"#runs-{self.variant}" if self.seeds else ""
        return Name(self.variant, is_baseline=self.is_baseline, href=href)


def section_rows(study: Study, runs: Folders) -> dict[str, list[Row]]:
    """By baseline, each variant that is compared with it and the variant's components if it has several.

    Args:
        study: What is compared.
        runs: Finished run folders; a variant without any has no row.

    Raises:
        UserError: a run lacks the split, or its files cannot be read or compared.
    """
    for folders in runs.values():
        for folder in folders.values():
            read_split(folder, study.split)  # says first what lacks the split
    rows: dict[str, list[Row]] = {}
    for baseline, variants in study.sections.items():
        of_baseline = runs.get(baseline, {})
        base = Baseline(predictions(of_baseline, study.split), study.looks) if of_baseline else None
        of_section = [
            row
            for variant in variants
            if variant in runs
            for row in _variant_rows(study, variant, runs[variant], baseline, of_baseline, base)
        ]
        rows[baseline] = _concluded(of_section, study)
    return rows


def _variant_rows(
    study: Study,
    variant: str,
    folders: Mapping[int, Path],
    baseline: str,
    of_baseline: Mapping[int, Path],
    base: Baseline | None,
) -> list[Row]:
    """The row of a variant, and of its components if it has several, without verdicts."""
    results = {seed: read_split(folder, study.split) for seed, folder in folders.items()}
    splits = [result["splits"][study.split] for result in results.values()]
    outputs = [key.removeprefix("ne/") for key in splits[0] if key.startswith("ne/")]
    outputs.remove("fused")
    outputs = ["fused", *(outputs if study.components and len(outputs) > 1 else [])]
    paths = predictions(folders, study.split)
    fitted = [calibrated_ne(path, outputs) for path in paths.values()]
    student = is_student(read_config(next(iter(folders.values()))))
    streams = [stream for folder in folders.values() if (stream := read_stream(folder))]
    rows = []
    for output in outputs:
        component = None if output == "fused" else output
        itself = variant == baseline and component is None
        published, published_gains = _published(study.paper, variant, component, baseline)
        window = {
            seed: None if student else result.get("train", {}).get(f"ne/window/{output}")
            for seed, result in results.items()
        }
        metrics = _metrics(splits, output) | {
            CALIBRATED: finite([of_run.get(output) for of_run in fitted]),
            PROGRESSIVE: []
            if component or student
            else finite([progressive_ne(stream) for stream in streams]),
            WINDOW: finite(list(window.values())),
        }
        row = Row(
            variant,
            component,
            is_baseline=itself,
            is_student=student,
            seeds=len(folders),
            paired_seeds=None if itself else len(folders.keys() & of_baseline.keys()),
            metrics=metrics,
            published=published,
            published_gains={} if itself else published_gains,
            costs={} if component else _costs(list(folders.values()), list(results.values())),
            ne=_known({seed: split[f"ne/{output}"] for seed, split in zip(results, splits, strict=True)}),
            window=_known(window),
        )
        if base and not itself:
            gains = base.gains(paths, output)
            row = replace(row, estimates=_estimates(gains))
            if gains and not component:
                row = _with_progressive(row, compare_streams(folders, of_baseline, study.looks, gains.shared))
        rows.append(row)
    return rows


def _estimates(gains: Gains | None) -> dict[str, Estimate]:
    """By GAINS' titles and that of the calibrated NE; empty without any."""
    if gains is None:
        return {}
    found = {title: getattr(gains, name) for title, name in GAINS.items()}
    return found | {gain_of(CALIBRATED): gains.calibrated}


def _with_progressive(row: Row, progressive: Progressive | None) -> Row:
    if progressive is None:
        return row
    estimates = row.estimates | {gain_of(PROGRESSIVE): progressive.estimate}
    return replace(row, estimates=estimates, progressive=progressive)


def _concluded(rows: Sequence[Row], study: Study) -> list[Row]:
    """The rows of a baseline's section with what their seeds tell."""
    base = next((row for row in rows if row.is_baseline), None)
    if not base:
        return list(rows)
    monitored = gain_of(study.monitored)
    estimates = {
        row.variant: row.estimates[monitored]
        for row in rows
        if not row.component and monitored in row.estimates
    }
    comparisons = compare(estimates, study.until)
    concluded = []
    for row in rows:
        if not row.is_baseline and (window := _window_gain(row.window, base.window, study.looks)):
            row = replace(row, estimates=row.estimates | {gain_of(WINDOW): window})
        if row.variant in comparisons and not row.component:
            row = replace(row, comparison=comparisons[row.variant], pairing=pairing(row.ne, base.ne))
        concluded.append(row)
    return concluded


def _window_gain(
    new: Mapping[int, float], base: Mapping[int, float], looks: tuple[int, ...]
) -> Estimate | None:
    """Gain of the last window's NE, by seed, whose interval is of the seeds alone; None without a seed in common."""
    seeds = [seed for seed in new if seed in base]
    if not seeds:
        return None
    after, before = (np.array([of[seed] for seed in seeds]) for of in (new, base))
    data = 0.0 if len(seeds) > 1 else math.nan
    point = float(100 * (after.mean() / before.mean() - 1))
    return Estimate(point, 100 * (after / before - 1), data, data, looks)


def row_against_itself(base: Row, looks: tuple[int, ...]) -> Row | None:
    """A row that compares every second seed of a baseline with the others; None with fewer than four."""
    if len(base.ne) < 4:
        return None
    gain = against_itself(np.array(list(base.ne.values())), looks)
    return Row(f"A/A: {base.variant}", against_itself=gain, comparison=Comparison(None, same(gain), math.nan))


def rows_over_others(study: Study, runs: Folders, pairs: Sequence[tuple[Row, Row]]) -> list[Row]:
    """The first row of each pair, with its gains over the second one in place of those over the baseline.

    Args:
        study: What is compared; the paper's own NE gains are over its baseline, so only its metrics count.
        runs: Finished run folders of both.
        pairs: Rows without components.

    Raises:
        UserError: files of a run cannot be read or compared.
    """
    paper = study.paper
    if paper:
        metrics = {
            name: numbers.model_copy(update={"ne_gain": None}) for name, numbers in paper.numbers.items()
        }
        paper = paper.model_copy(update={"numbers": metrics})
    rows = []
    for variant, group in groupby(pairs, lambda pair: pair[1].variant):
        base = Baseline(predictions(runs[variant], study.split), study.looks)
        for row, _ in group:
            folders = runs[row.variant]
            gains = base.gains(predictions(folders, study.split))
            row = replace(
                row,
                estimates=_estimates(gains),
                progressive=None,
                paired_seeds=len(folders.keys() & runs[variant].keys()),
                published_gains=_published(paper, row.variant, None, variant)[1],
            )
            if gains:
                row = _with_progressive(
                    row, compare_streams(folders, runs[variant], study.looks, gains.shared)
                )
            rows.append(row)
    judged = {
        str(index): row.estimates[gain_of(study.monitored)]
        for index, row in enumerate(rows)
        if gain_of(study.monitored) in row.estimates
    }
    comparisons = compare(judged, study.until)
    return [replace(row, comparison=comparisons.get(str(index))) for index, row in enumerate(rows)]


def bayes_row(runs: Folders, split: str) -> Row | None:
    """Metrics of the probability that the labels were drawn from, where it is known: no model can be expected to
    do better on these rows."""
    truth = _first_predictions(runs, split)
    if "true_probability" not in truth:
        return None
    known = (truth["true_probability"] >= 0) & (truth["true_probability"] <= 1)
    if not known.any():
        return None
    rows = {name: values[known] for name, values in truth.items()}
    metrics = binary_metrics(rows["label"], rows["true_probability"], rows["weight"], rows.get("group"))
    return Row(
        BAYES,
        metrics={title: finite([metrics.get(name)]) for title, name in METRICS.items()},
        rows=(int(known.sum()), len(known)),
    )


def undefined(runs: Folders, split: str) -> str | None:
    """Which metrics no model has on these rows, and why, in words; None if it has all."""
    rows = _first_predictions(runs, split)
    label, weight = rows["label"], rows["weight"]
    any_model = np.full(len(label), 0.5)
    return why_missing(binary_metrics(label, any_model, weight, rows.get("group")), label, any_model, weight)


def _first_predictions(runs: Folders, split: str) -> dict[str, Any]:
    return read_predictions(next(iter(predictions(next(iter(runs.values())), split).values())))


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


def _known(values: Mapping[K, float | None]) -> dict[K, float]:
    return {key: value for key, value in values.items() if value is not None and math.isfinite(value)}


def _metrics(splits: Sequence[dict[str, Any]], model: str) -> dict[str, list[float]]:
    return {
        title: finite([result.get(f"{name}/{model}") for result in splits]) for title, name in METRICS.items()
    }


def finite(values: Sequence[float | None]) -> list[float]:
    """The values that are known; a gAUC without groups is None or NaN."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _costs(folders: Sequence[Path], results: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    values = {
        "embedding parameters": [results[0]["parameters"]["tables"]],
        "dense parameters": [results[0]["parameters"]["dense"]],
        "embedding bytes": [
            results[0]["table_bytes"] if "table_bytes" in results[0] else _table_bytes(folders[0], results[0])
        ],
        "multiply-adds a row": [result.get("multiply_adds") for result in results],
        "seconds a million rows": [
            1e6 * result["seconds"] / result["rows"] if result["rows"] else None for result in results
        ],
        "rows/s": [result["rows_per_second"] for result in results],
        "training seconds": [result["seconds"] for result in results],
        "peak memory (bytes)": [result.get("peak_memory") for result in results],
    }
    return {title: finite(numbers) for title, numbers in values.items()}


def _table_bytes(folder: Path, result: dict[str, Any]) -> float | None:
    """For runs that did not record it: known if all tables are float32."""
    training = (yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}).get(
        "training", {}
    )
    return 4 * result["parameters"]["tables"] if training.get("table_precision", "fp32") == "fp32" else None
