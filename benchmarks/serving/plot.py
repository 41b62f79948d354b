"""Latency by load, as a plot."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from cetnet.trainer.plan.plot_style import COLORS, LINES, MARKERS


def plot_latency(results: dict[str, Any], path: Path) -> None:
    """p50 and p99 by the rate of requests, and the share that was refused."""
    mpl.rcParams["svg.hashsalt"] = "cetnet"
    levels = results["levels"]
    peak = results["fastest"]["rate"]
    rates = [each["share"] * peak for each in levels]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log")
    ends = []
    for number, (key, name) in enumerate([("p50", "median"), ("p99", "99 %")]):
        values = [each[key] for each in levels]
        axes.plot(rates, values, LINES[number], color=COLORS[number], marker=MARKERS[number])
        ends.append((rates[-1], values[-1], name, COLORS[number]))
    axes.axhline(results["lone"]["p50"], color="0.6", linewidth=0.8)
    axes.set_xlim(0, 1.12 * rates[-1])
    where = (rates[-1], results["lone"]["p50"])
    axes.annotate(
        "median of a lone request", where, (0, 4), textcoords="offset points", ha="right", fontsize=8
    )
    axes.axvline(peak, color="0.6", linewidth=0.8, linestyle=":")
    axes.annotate("peak", (peak, axes.get_ylim()[1]), (3, -10), textcoords="offset points")
    for each, rate in zip(levels, rates, strict=True):
        if each["failed"]:
            share = each["failed"] / sum(each["outcomes"].values())
            place: dict[str, Any] = {
                "textcoords": "offset points",
                "ha": "center",
                "fontsize": 8,
                "color": COLORS[1],
            }
            axes.annotate(f"{share:.0%}\nrefused", (rate, each["p99"]), (0, 7), **place)
    for x, y, name, color in ends:
        axes.annotate(name, (x, y), (6, 0), textcoords="offset points", color=color, va="center")
    axes.set_xlabel(f"requests a second, of {results['candidates']} candidates each")
    axes.set_ylabel("latency, ms")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.2)
    figure.savefig(path, dpi=150)
