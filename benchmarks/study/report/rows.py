"""The numbers of a study: a row for each model, from finished runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cetnet.benchmarks.study.definition import Numbers, Paper
from cetnet.benchmarks.study.report.bootstrap import Baseline, Gains, read_predictions
from cetnet.benchmarks.study.report.document import Name
from cetnet.benchmarks.study.report.run_files import read_split
from cetnet.trainer.metrics import binary_metrics, why_missing

METRICS = {"NE": "ne", "AUC": "auc", "gAUC": "gauc", "LogLoss": "logloss"}
"""Metrics of the table, and their names in result.json."""

GAINS = {"NE gain (%)": "ne", "AUC gain (pp)": "auc", "gAUC gain (pp)": "gauc"}
"""Gains of the table, and their names in `Gains`."""

SIZES = ("embedding parameters", "dense parameters", "rows/s")
"""The costs that the first table has too."""

COSTS = (*SIZES, "embedding bytes", "training seconds", "peak memory (bytes)")
BAYES = "Bayes optimum"

Folders = Mapping[str, Mapping[int, Path]]
"""Finished run folders of each variant that has any, by seed."""


@dataclass(frozen=True)
class Row:
    """A model of the tables; what is unknown or does not apply is missing or None."""

    variant: str
    component: str | None = None
    is_baseline: bool = False
    seeds: int | None = None
    paired_seeds: int | None = None  # those that the baseline has too, which gains are over
    metrics: dict[str, list[float]] = field(default_factory=dict)  # a value per seed, by METRICS' titles
    gains: Gains | None = None
    published: dict[str, float] = field(default_factory=dict)  # by METRICS' titles
    published_gains: dict[str, float] = field(default_factory=dict)  # by GAINS' titles
    costs: dict[str, list[float]] = field(default_factory=dict)  # a value per seed, by COSTS
    rows: tuple[int, int] | None = None  # of the Bayes optimum: that its metrics are over, and all

    @property
    def name(self) -> Name:
        """As tables show it."""
        if self.component:
            return Name(self.component, is_component=True)
        href = f"#runs-{self.variant}" if self.seeds else ""
        return Name(self.variant, is_baseline=self.is_baseline, href=href)


def section_rows(
    runs: Folders,
    sections: Mapping[str, Sequence[str]],
    split: str,
    components: bool,
    paper: Paper | None,
) -> dict[str, list[Row]]:
    """By baseline, each variant that is compared with it and the variant's components if it has several.

    Args:
        runs: Finished run folders; a variant without any has no row.
        sections: For each baseline, the variants that are compared with it, itself included.
        split: The evaluation split of the metrics.
        components: Whether components have rows.
        paper: Published numbers.

    Raises:
        UserError: a run lacks the split, or its files cannot be read or compared.
    """
    all_results = {
        variant: [read_split(folder, split) for folder in folders.values()]
        for variant, folders in runs.items()
    }
    rows: dict[str, list[Row]] = {}
    for baseline, variants in sections.items():
        rows[baseline] = []
        base = Baseline(predictions(runs[baseline], split)) if baseline in runs else None
        for variant in variants:
            if variant not in runs:
                continue
            folders, results = runs[variant], all_results[variant]
            splits = [result["splits"][split] for result in results]
            outputs = [key.removeprefix("ne/") for key in splits[0] if key.startswith("ne/")]
            outputs.remove("fused")
            for output in ["fused", *(outputs if components and len(outputs) > 1 else [])]:
                component = None if output == "fused" else output
                itself = variant == baseline and component is None
                published, published_gains = _published(paper, variant, component, baseline)
                rows[baseline].append(
                    Row(
                        variant,
                        component,
                        is_baseline=itself,
                        seeds=len(folders),
                        paired_seeds=None if itself else len(folders.keys() & runs.get(baseline, {}).keys()),
                        metrics=_metrics(splits, output),
                        gains=base.gains(predictions(folders, split), output)
                        if base and not itself
                        else None,
                        published=published,
                        published_gains={} if itself else published_gains,
                        costs={} if component else _costs(list(folders.values()), results),
                    )
                )
    return rows


def same_size_rows(
    runs: Folders, pairs: Sequence[tuple[Row, Row]], split: str, paper: Paper | None
) -> list[Row]:
    """The first row of each pair, with its gains over the second one in place of those over the baseline.

    Args:
        runs: Finished run folders of both.
        pairs: Rows without components.
        split: The evaluation split.
        paper: Published numbers; its own NE gains are over its baseline, so only metrics count.

    Raises:
        UserError: files of a run cannot be read or compared.
    """
    if paper:
        metrics = {
            name: numbers.model_copy(update={"ne_gain": None}) for name, numbers in paper.numbers.items()
        }
        paper = paper.model_copy(update={"numbers": metrics})
    rows = []
    for variant, group in groupby(pairs, lambda pair: pair[1].variant):
        base = Baseline(predictions(runs[variant], split))
        rows += [
            replace(
                row,
                gains=base.gains(predictions(runs[row.variant], split)),
                paired_seeds=len(runs[row.variant].keys() & runs[variant].keys()),
                published_gains=_published(paper, row.variant, None, variant)[1],
            )
            for row, _ in group
        ]
    return rows


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


def predictions(folders: Mapping[int, Path], split: str) -> dict[int, Path]:
    """The predictions' file of each run."""
    return {seed: folder / "predictions" / f"{split}.parquet" for seed, folder in folders.items()}


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
