"""What the network costs: training on several hosts of one machine, and how near the planner's estimate comes.

    python -m cetnet.benchmarks.network --help

Hosts are network namespaces (hosts.py); everything that is timed is what users run, `cetnet train` under
torchrun, but for the embeddings alone (embedding_part.py), which is what the planner estimates.
"""

import csv
import json
import math
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich import box
from rich.table import Table

from cetnet.benchmarks.network.hosts import HostError, Network, can_delay, network, set_link, torchrun
from cetnet.models.schema import Feature, Schema
from cetnet.trainer.config import load_config
from cetnet.trainer.console import console, output, quieten
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.plot_style import COLORS
from cetnet.trainer.yaml_files import save_yaml

PLANS: dict[str, list[str]] = {"table_wise": ["table_wise"], "row_wise": ["row_wise"], "planned": []}
_SECONDS_PER_LAUNCH = 600.0
_FEATURES, _TABLE_ROWS = 8, 100_000
# Two towers of a few small layers on 64 numbers an id: at low bandwidth a step is the exchange of embeddings.
_MODEL = {"components": {"dnn": {"kind": "dnn", "copies": 2, "embedding_dim": 64, "hidden_units": [64, 32]}}}


@dataclass(frozen=True)
class Result:
    """One configuration, measured and estimated; times in milliseconds.

    Attributes:
        mbit: bandwidth of each host, Mbit/s; None: no limit.
        plan: key of PLANS.
        precision: of embeddings and gradients on the network.
        tables: sharding types of the plan, with their number of tables.
        step: median of `cetnet train`'s steps.
        embeddings: median of what the planner estimates: lookups, exchange, gradients, update.
        default: planner's estimate with TorchRec's default topology.
        calibrated: the same with what `cetnet calibrate` measured.
    """

    mbit: float | None
    plan: str
    precision: str
    tables: str
    step: float
    embeddings: float
    default: float
    calibrated: float


def main(
    hosts: Annotated[int, typer.Option(min=2, max=4, help="Hosts, with one process each.")] = 2,
    bandwidth: Annotated[
        list[str] | None,
        typer.Option(
            help="Mbit/s of each host, or `unlimited`; repeat it. Default: 100, 1000 and unlimited."
        ),
    ] = None,
    plan: Annotated[
        list[str] | None, typer.Option(help="table_wise, row_wise or planned; repeat it. Default: all three.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Of communication: fp32, fp16; repeat it. Default: both. (bf16 needs GPUs.)"),
    ] = None,
    delay_ms: Annotated[
        float, typer.Option(min=0, help="Added each way, where the kernel has netem; elsewhere it says so.")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=16, help="Rows per step of all hosts together.")] = 4096,
    steps: Annotated[int, typer.Option(min=1, help="Steps whose median is taken.")] = 20,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before them.")] = 5,
    out: Annotated[
        Path, typer.Option(help="Folder for table.md, table.csv, plot.png, calibrations and logs.")
    ] = Path("runs/network"),
) -> None:
    """What the network costs: train on 2-4 hosts at several bandwidths.

    The hosts are network namespaces of this machine (root, iproute2). Only
    namespaces named cetnet-* are touched, and removed at the end.

    For each bandwidth: `cetnet calibrate`; then for each plan and precision
    `cetnet train` (the step) and a loop of the sharded tables alone, which
    is what the planner estimates. About 15 minutes on 2 cores.

    Example: python -m cetnet.benchmarks.network --bandwidth 1000 --steps 10
    """
    rates = [_rate(text) for text in bandwidth or ["100", "1000", "unlimited"]]
    variants = [(p, c) for p in _known(plan, PLANS) for c in _known(precision, ("fp32", "fp16"))]
    lanes = 4 * hosts
    if batch_size % lanes:
        nearest = batch_size // lanes * lanes
        raise UserError(f"--batch-size {batch_size} does not divide among {hosts} hosts; {nearest} does")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out, or remove it")
    with network(hosts) as made:
        delay = delay_ms if delay_ms and can_delay(made) else 0.0
        if delay != delay_ms:
            console.print("this kernel has no netem: no delay is added")
        config = _prepare(out, batch_size, lanes, warm_up + steps)
        results: list[Result] = []
        for rate in rates:
            set_link(made, rate, delay)
            results += _measure(made, rate, variants, config, warm_up, steps, out)
            # After each bandwidth, so that a long run that is stopped has not been for nothing.
            _report(results, hosts, delay, batch_size, steps, out)
    output.print(_table(results, hosts, delay))
    output.print(f"{out}: table.md, table.csv, plot.png, calibration-*.yaml", highlight=False)


def _measure(
    made: Network,
    mbit: float | None,
    variants: list[tuple[str, str]],
    config: Path,
    warm_up: int,
    steps: int,
    out: Path,
) -> list[Result]:
    name = _rate_name(mbit).replace(" ", "").replace("/", "p")
    logs = out / "logs" / name
    calibration = out / f"calibration-{name}.yaml"
    console.print(f"{_rate_name(mbit)}: calibrating", highlight=False)
    _cetnet(made, ["calibrate", "--out", str(calibration)], logs / "calibrate.log")
    cluster = yaml.safe_load(calibration.read_text())
    overrides = {f"{p}-{c}": _overrides(PLANS[p], c, cluster) for p, c in variants}
    console.print(f"{_rate_name(mbit)}: timing the embeddings alone", highlight=False)
    jobs, answer = logs / "embeddings.json", logs / "embeddings-result.json"
    jobs.write_text(
        json.dumps(
            {
                "config": str(config),
                "variants": overrides,
                "warm_up": warm_up,
                "steps": steps,
                "out": str(answer),
            }
        )
    )
    torchrun(
        made,
        "cetnet.benchmarks.network.embedding_part",
        [str(jobs)],
        logs / "embeddings.log",
        _SECONDS_PER_LAUNCH,
    )
    embeddings = json.loads(answer.read_text())
    results = []
    for p, c in variants:
        key = f"{p}-{c}"
        run = out / "runs" / name / key
        _cetnet(made, ["train", str(config), f"run_dir={run}", *overrides[key]], logs / f"{key}.log")
        shutil.rmtree(run / "checkpoints")
        alone = embeddings[key]
        default = _estimate(config, len(made.hosts), alone["tables"], c, {})
        calibrated = _estimate(config, len(made.hosts), alone["tables"], c, cluster)
        result = Result(
            mbit=mbit,
            plan=p,
            precision=c,
            tables=", ".join(f"{count} {kind}" for kind, count in sorted(alone["types"].items())),
            step=1e3 * _median_step(run, warm_up),
            embeddings=1e3 * alone["seconds"],
            default=default,
            calibrated=calibrated,
        )
        results.append(result)
        console.print(
            f"{_rate_name(mbit)}, {p}, {c}: {result.step:.0f} ms a step; embeddings alone {result.embeddings:.0f} ms"
            f" (estimates: default {default:.1f} ms, calibrated {calibrated:.0f} ms)",
            highlight=False,
        )
    return results


def _cetnet(made: Network, arguments: list[str], log: Path) -> None:
    torchrun(made, "cetnet", arguments, log, _SECONDS_PER_LAUNCH)


def _prepare(out: Path, batch_size: int, lanes: int, steps: int) -> Path:
    """Write data and an experiment file; returns the latter."""
    from cetnet.trainer.prepare.sources.random import prepare_random

    out.mkdir(parents=True)
    schema = Schema(
        label="click",
        tables={f"f{i}": _TABLE_ROWS for i in range(_FEATURES)},
        features=tuple(Feature(name=f"f{i}", kind="categorical", table=f"f{i}") for i in range(_FEATURES)),
    )
    save_yaml(out / "schema.yaml", schema)
    prepare_random(out / "schema.yaml", rows=batch_size * steps * 5 // 4 + 1000, out=out / "data")
    config = out / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "data": {"path": str(out / "data"), "batch_size": batch_size, "lanes": lanes},
                "model": _MODEL,
                "training": {"device": "cpu", "log_every": 1, "max_steps": steps, "seed": 1},
                "evaluation": {"splits": []},
            },
            sort_keys=False,
        )
    )
    return config


def _overrides(sharding_types: list[str], precision: str, cluster: dict[str, float]) -> list[str]:
    constraints = {"*": {"sharding_types": sharding_types}} if sharding_types else {}
    return [
        f"sharding.constraints={json.dumps(constraints)}",
        f"sharding.communication={json.dumps({'forward': precision, 'backward': precision})}",
        f"sharding.cluster={json.dumps(cluster)}",
    ]


def _estimate(
    config: Path, hosts: int, tables: dict[str, str], precision: str, cluster: dict[str, float]
) -> float:
    """Planner's estimate of the fullest rank, ms, for tables of these sharding types."""
    from cetnet.sharding.estimate import load  # these import TorchRec, for which --help need not wait
    from cetnet.trainer.session import build_model, plan_model

    overrides = _overrides([], precision, cluster)
    overrides[0] = "sharding.constraints=" + json.dumps(
        {table: {"sharding_types": [kind]} for table, kind in tables.items()}
    )
    settings = load_config(config, overrides)
    schema = read_schema(settings.data.path / "schema.yaml")
    plan = plan_model(build_model(settings, schema, "meta"), settings, schema, "cpu", hosts, 1)
    return max(map(sum, load(plan, hosts).phases))


def _median_step(run: Path, warm_up: int) -> float:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return median([r["seconds_per_step"] for r in records if r["kind"] == "train"][warm_up:])


def _rate(text: str) -> float | None:
    if text == "unlimited":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 1 <= rate <= 100_000:
        raise UserError(f"--bandwidth {text}: a number of Mbit/s between 1 and 100000, or `unlimited`")
    return rate


def _rate_name(mbit: float | None) -> str:
    if mbit is None:
        return "unlimited"
    return f"{mbit:g} Mbit/s" if mbit < 1000 else f"{mbit / 1000:g} Gbit/s"


def _known(chosen: list[str] | None, known: Any) -> list[str]:
    for name in chosen or []:
        if name not in known:
            raise UserError(f"{name!r} is none of {', '.join(known)}")
    return list(dict.fromkeys(chosen or known))


_HEADINGS = (
    "bandwidth",
    "plan",
    "on the wire",
    "step (ms)",
    "embeddings (ms)",
    "default estimate (ms)",
    "measured / default",
    "calibrated estimate (ms)",
    "measured / calibrated",
)


def _cells(result: Result) -> list[str]:
    plan = result.plan if result.plan != "planned" else f"planned ({result.tables})"
    return [
        _rate_name(result.mbit),
        plan,
        result.precision,
        f"{result.step:.0f}",
        f"{result.embeddings:.1f}",
        f"{result.default:.2f}",
        f"{result.embeddings / result.default:.1f}",
        f"{result.calibrated:.1f}",
        f"{result.embeddings / result.calibrated:.2f}",
    ]


def _title(hosts: int, delay: float) -> str:
    return f"{hosts} hosts" + (f", {delay:g} ms delay each way" if delay else "")


def _table(results: list[Result], hosts: int, delay: float) -> Table:
    table = Table(title=_title(hosts, delay), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if index < 3 else "right")
    for result, following in zip(results, [*results[1:], results[-1]], strict=True):
        table.add_row(*_cells(result), end_section=result.mbit != following.mbit)
    return table


def _report(results: list[Result], hosts: int, delay: float, batch_size: int, steps: int, out: Path) -> None:
    """Write table.md, table.csv and plot.png."""
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|:--|:--|:--|" + "--:|" * (len(_HEADINGS) - 3)]
    lines += ["| " + " | ".join(_cells(result)) + " |" for result in results]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}"
    lines += [
        "",
        f"({_title(hosts, delay)}, one process each, {batch_size:,} rows a step, {_FEATURES} ids in {2 * _FEATURES} "
        f"tables of {_TABLE_ROWS:,} x 64; median of {steps} steps; {machine}; {datetime.now(UTC):%Y-%m-%d}; "
        f"`python -m cetnet.benchmarks.network {' '.join(sys.argv[1:])}`)".replace(" `)", "`)"),
    ]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(results[0])))
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
    _plot(results, _title(hosts, delay), out / "plot.png")


def _plot(results: list[Result], title: str, path: Path) -> None:
    """Step times as bars; measured against estimated as points. Hatches and fillings tell without colour."""
    figure = Figure(figsize=(12, 5), dpi=150, layout="constrained")
    bars, points = figure.subplots(1, 2, width_ratios=(1.5, 1))
    rates = list(dict.fromkeys(result.mbit for result in results))
    kinds = list(dict.fromkeys((result.plan, result.precision) for result in results))
    width = 0.8 / len(kinds)
    plans = list(PLANS)
    for index, (plan, precision) in enumerate(kinds):
        mine = [r for r in results if (r.plan, r.precision) == (plan, precision)]
        x = [rates.index(r.mbit) + (index - (len(kinds) - 1) / 2) * width for r in mine]
        half = precision != "fp32"
        drawn = bars.bar(
            x,
            [r.step for r in mine],
            width,
            label=f"{plan.replace('_', '-')}, {precision}",
            color="white" if half else COLORS[plans.index(plan)],
            edgecolor=COLORS[plans.index(plan)] if half else "white",
            hatch=("//", "..", "xx")[plans.index(plan)],
            linewidth=1.2,
        )
        bars.bar_label(drawn, fmt="{:,.0f}", fontsize=6, padding=1)
        for estimate, filled in (("default", False), ("calibrated", True)):
            points.plot(
                [getattr(r, estimate) for r in mine],
                [r.embeddings for r in mine],
                "os^"[plans.index(plan)],
                color=COLORS[plans.index(plan)],
                markerfacecolor=COLORS[plans.index(plan)] if filled else "white",
                markersize=9 if half else 6,
                linestyle="none",
                label=f"{plan.replace('_', '-')}, {precision}" if filled else None,
            )
    steps = [r.step for r in results]
    bars.set_yscale("log")
    bars.set_ylim(10 ** math.floor(math.log10(min(steps) / 2)), max(steps) * 4)
    bars.set_xticks(range(len(rates)), [_rate_name(rate) for rate in rates])
    bars.set_ylabel("ms a step, `cetnet train` (log scale)")
    bars.set_title(f"{title}: step time by bandwidth of each host", loc="left")
    bars.legend(fontsize=8, frameon=False, ncols=2)
    every = [value for r in results for value in (r.embeddings, r.default, r.calibrated)]
    line = [min(every) / 2, max(every) * 2]
    points.plot(line, line, color="0.3", linewidth=1)
    points.fill_between(line, [v / 2 for v in line], [v * 2 for v in line], color="0.9", zorder=0)
    points.set_xscale("log")
    points.set_yscale("log")
    points.set_xlabel("planner's estimate, ms")
    points.set_ylabel("measured: embeddings alone, ms")
    points.set_title("hollow: default topology; filled: calibrated", loc="left")
    points.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    points.set_ylim(line[0] / 2, line[1] * 8)
    points.annotate("grey: within 2x", (0.97, 0.03), xycoords="axes fraction", ha="right", fontsize=9)
    for axes in (bars, points):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, axis="y")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    points.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.savefig(path)


def cli() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2, a run that failed 1."""
    quieten()
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(main)
    try:
        app()
    except UserError as error:
        print(f"network: {error}", file=sys.stderr)
        sys.exit(2)
    except HostError as error:
        print(f"network: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli()
