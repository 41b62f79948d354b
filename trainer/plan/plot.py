"""The plot of `cetnet plan --sweep`: step time, memory and scaling efficiency against the number of GPUs."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from cetnet.trainer.errors import UserError
from cetnet.trainer.files import output_file
from cetnet.trainer.plan.plot_style import COLORS, LINES, MARKERS, label_ends
from cetnet.trainer.plan.report import SweepResult, efficiency, missing_compute


def check_plot(path: Path) -> None:
    """Raise UserError for a kind of picture that matplotlib can't draw."""
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise UserError(f"--plot {path}: the name must end in one of .{', .'.join(sorted(kinds))}")


def plot_sweep(results: Sequence[SweepResult], title: str, path: Path) -> None:
    """Three panels over a logarithmic number of GPUs, a line per model, labelled at its end."""
    figure = Figure(figsize=(11, 9), dpi=110, layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    planned = [result for _, _, result in results if result]
    title += ": estimates of `cetnet plan`"
    if bounds := [result for result in planned if result.is_lower_bound]:
        title += f"\nsteps take at least this long: {missing_compute(bounds)}"
    figure.suptitle(title, x=0.01, ha="left", parse_math=False)
    names = list(dict.fromkeys(name for name, _, _ in results))
    gpus = sorted({cluster.world_size for _, cluster, _ in results})
    ends: list[list[tuple[float, float, str, str]]] = [[], [], []]
    for index, name in enumerate(names):
        fitting = {c.world_size: r for n, c, r in results if n == name and r}
        if not fitting:
            continue
        memory = {n: (max(r.load.memory) + r.dense.bytes) / 1024**3 for n, r in fitting.items()}
        series = (
            ({n: r.step_ms for n, r in fitting.items()}, "{:.3g} ms"),
            (memory, "{:.3g} GiB"),
            (efficiency(results, name), "{:.0%}"),
        )
        for panel, (values, label), at_end in zip(panels, series, ends, strict=True):
            x, y = list(values), list(values.values())
            panel.plot(
                x,
                y,
                color=COLORS[index % 7],
                linestyle=LINES[index % 7],
                marker=MARKERS[index % 7],
                markersize=6,
                linewidth=1.6,
            )
            at_end.append((x[-1], y[-1], f"{name}  {label.format(y[-1])}", COLORS[index % 7]))
    on_gpus = planned[0].device == "cuda"
    if on_gpus and (capacity := planned[0].cluster.hardware.hbm_gb):
        panels[1].axhline(capacity, color="0.35", linestyle=(0, (6, 4)), linewidth=1)
        ends[1].append((gpus[-1], capacity, f"memory of a GPU  {capacity:g} GiB", "0.35"))
    labels = (
        "step time, ms",
        f"memory of the fullest {'GPU' if on_gpus else 'rank'}, GiB",
        "scaling efficiency",
    )
    for panel, label, at_end in zip(panels, labels, ends, strict=True):
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(gpus)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        label_ends(panel, at_end, figure.get_figheight() / 3)
    panels[2].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[2].set_xlabel("GPUs" if on_gpus else "ranks")
    with output_file(path) as aside:
        figure.savefig(aside, format=path.suffix.removeprefix(".").lower())
