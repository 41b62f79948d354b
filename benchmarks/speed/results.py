"""What was measured, as results.json and table.md."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cetnet.benchmarks.speed.comparisons import ENVIRONMENT, Comparison, Ratio, quotient
from cetnet.benchmarks.speed.roofline import bounds
from cetnet.trainer.files import write_json, write_text


def describe_machine() -> dict[str, str]:
    """What the numbers were measured on, and when."""
    models = [
        line
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.processor(),
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "environment": " ".join(f"{key}={value}" for key, value in ENVIRONMENT.items()),
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python -m cetnet.benchmarks.speed", *sys.argv[1:]]),
    }


def write_results(out: Path, results: Mapping[str, Any], every: Sequence[Comparison]) -> None:
    """Write results.json and table.md anew, each whole."""
    write_json(out / "results.json", results)
    write_text(out / "table.md", markdown(results, every) + "\n")


def markdown(results: Mapping[str, Any], every: Sequence[Comparison]) -> str:
    """The targets, then each comparison, then the roofline."""
    machine = results["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, {machine['started']}; "
        f"`{machine['command']}`: {results['rounds']} rounds of {results['seconds']:g} s. Medians (min..max).",
        "",
        "| what | wanted | measured | reached |",
        "|---|---|---|---|",
    ]
    measured = {
        c.name: (c, results["comparisons"][c.name]) for c in every if c.name in results["comparisons"]
    }
    for comparison, result in measured.values():
        for ratio in comparison.ratios:
            lines.append(f"| {ratio.name} | {ratio.wanted} | {' | '.join(_ratio(ratio, result))} |")
    lines += _reader_lines(results)
    for comparison, result in measured.values():
        lines += [
            "",
            f"**{comparison.name}**: {comparison.about}",
            "",
            "| | rows/s | min..max |",
            "|---|---|---|",
        ]
        for name, rates in result["rates"].items():
            lines.append(f"| {name} | {median(rates):,.0f} | {min(rates):,.0f}..{max(rates):,.0f} |")
        lines += [f"| {name} | {why} | |" for name, why in result["missing"].items()]
    if "roofline" in results:
        lines += ["", "**roofline**", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value:,.1f} |" for name, value in results["roofline"].items()]
        limits = bounds(results["roofline"])
        lines += [f"| DCNv2, at most, rows/s: {name} | {value:,.0f} |" for name, value in limits.items()]
        rates = results["comparisons"].get("peers-2m", {}).get("rates", {})
        for name in ("fp32", "bf16"):
            if ours := rates.get(f"ours {name}"):
                share = median(ours) / min(limits[f"{name} products"], limits["random reads"])
                lines.append(f"| DCNv2, ours {name}, share of the lower limit | {share:.2f} |")
    return "\n".join(lines)


def _reader_lines(results: Mapping[str, Any]) -> list[str]:
    """The reader beside pyarrow, and beside the fastest of our trainers on Criteo's columns."""
    if "reader" not in results:
        return []
    found = results["reader"]
    lines = []
    for order in ("sequential", "shuffled"):
        of_pyarrow = Ratio(
            f"reader, {order} / pyarrow's decoding, rows per CPU second",
            quotient(f"reader, {order}", "pyarrow"),
            0.7,
        )
        cells = _ratio(of_pyarrow, {"rates": found["cpu"], "missing": {}})
        lines.append(f"| {of_pyarrow.name} | {of_pyarrow.wanted} | {' | '.join(cells)} |")
    rates = [
        median(rates)
        for comparison in results["comparisons"].values()
        for name, rates in comparison["rates"].items()
        if name.startswith("ours")
    ]  # of DCNv2, which is faster than DIN
    if rates:
        value = median(found["wall"]["reader, shuffled"]) / max(rates)
        lines.append(
            f"| reader, shuffled, one core / the fastest of our trainers, rows/s | >= 5 | {value:.1f} "
            f"| {'yes' if value >= 5 else 'no'} |"
        )
    return lines


def _ratio(ratio: Ratio, result: Mapping[str, Any]) -> tuple[str, str]:
    """Median and extremes over the rounds, and whether the median is good enough."""
    try:
        values = [
            ratio.of(dict(zip(result["rates"], rates, strict=True)))
            for rates in zip(*result["rates"].values(), strict=True)
        ]
    except KeyError:
        values = []
    if not values:
        return f"not measured: {', '.join(result['missing'].values())}", ""
    middle = median(values)
    reached = {None: "", True: "yes", False: "no"}[ratio.reached(middle)]
    return f"{middle:.2f} ({min(values):.2f}..{max(values):.2f})", reached
