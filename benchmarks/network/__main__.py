"""What the network costs: training on several hosts of one machine, and how near the planner's estimate comes.

    python -m cetnet.benchmarks.network --help

Hosts are network namespaces (hosts.py); everything that is timed is what users run, `cetnet train` under
torchrun, but for the embeddings alone (embedding_part.py), which is what the planner estimates.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
import yaml

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.measured import machine
from cetnet.benchmarks.network.hosts import Network, can_delay, network, set_link, torchrun
from cetnet.benchmarks.network.results import PLANS, Result, rate_name, table, write_results
from cetnet.models.schema import Feature, Schema
from cetnet.trainer.config import load_config
from cetnet.trainer.console import console, output
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import write_json
from cetnet.trainer.yaml_files import save_yaml

_SECONDS_PER_LAUNCH = 600.0
_FEATURES, _TABLE_ROWS = 8, 100_000
# Two components of a few small layers on 64 numbers an id: at low bandwidth a step is the exchange of embeddings.
_MODEL = {"components": {"dnn": {"kind": "dnn", "copies": 2, "embedding_dim": 64, "hidden_units": [64, 32]}}}


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
        title = f"{hosts} hosts" + (f", {delay:g} ms delay each way" if delay else "")
        about = (
            f"{title}, one process each, {batch_size:,} rows a step, {_FEATURES} ids in {2 * _FEATURES} tables of "
            f"{_TABLE_ROWS:,} x 64; median of {steps} steps; {machine()}; {datetime.now(UTC):%Y-%m-%d}; "
            f"`{' '.join(['python -m cetnet.benchmarks.network', *sys.argv[1:]])}`"
        )
        config = _prepare(out, batch_size, lanes, warm_up + steps)
        results: list[Result] = []
        for rate in rates:
            set_link(made, rate, delay)
            results += _measure(made, rate, variants, config, warm_up, steps, out)
            # After each bandwidth, so that a long run that is stopped has not been for nothing.
            write_results(results, title, about, out)
    output.print(table(results, title))
    output.print(f"{out}: table.md, table.csv, plot.png, calibration-*.yaml")


def _measure(
    made: Network,
    mbit: float | None,
    variants: list[tuple[str, str]],
    config: Path,
    warm_up: int,
    steps: int,
    out: Path,
) -> list[Result]:
    name = rate_name(mbit).replace(" ", "").replace("/", "p")
    logs = out / "logs" / name
    calibration = out / f"calibration-{name}.yaml"
    console.print(f"{rate_name(mbit)}: calibrating")
    _cetnet(made, ["calibrate", "--out", str(calibration)], logs / "calibrate.log")
    cluster = yaml.safe_load(calibration.read_text(encoding="utf-8"))
    overrides = {f"{p}-{c}": _overrides({"*": PLANS[p]} if PLANS[p] else {}, c, cluster) for p, c in variants}
    console.print(f"{rate_name(mbit)}: timing the embeddings alone")
    jobs, answer = logs / "embeddings.json", logs / "embeddings-result.json"
    job = {
        "config": str(config),
        "variants": overrides,
        "warm_up": warm_up,
        "steps": steps,
        "out": str(answer),
    }
    write_json(jobs, job)
    torchrun(
        made,
        "cetnet.benchmarks.network.embedding_part",
        [str(jobs)],
        logs / "embeddings.log",
        _SECONDS_PER_LAUNCH,
    )
    embeddings = json.loads(answer.read_text(encoding="utf-8"))
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
            f"{rate_name(mbit)}, {p}, {c}: {result.step:.0f} ms a step; embeddings alone {result.embeddings:.0f} ms"
            f" (estimates: default {default:.1f} ms, calibrated {calibrated:.0f} ms)",
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
        ),
        encoding="utf-8",
    )
    return config


def _overrides(
    sharding_types: Mapping[str, Sequence[str]], precision: str, cluster: Mapping[str, float]
) -> list[str]:
    """Settings of a run; tables, by pattern, may be sharded in these ways only, others in any."""
    constraints = {table: {"sharding_types": types} for table, types in sharding_types.items()}
    return [
        f"sharding.constraints={json.dumps(constraints)}",
        f"sharding.communication={json.dumps({'forward': precision, 'backward': precision})}",
        f"sharding.cluster={json.dumps(cluster)}",
    ]


def _estimate(
    config: Path, hosts: int, tables: dict[str, str], precision: str, cluster: dict[str, float]
) -> float:
    """Planner's estimate of the fullest rank, ms, for tables of these sharding types."""
    from cetnet.sharding.rank_load import sum_by_rank  # these import TorchRec, for which --help need not wait
    from cetnet.trainer.session import build_model, plan_model

    overrides = _overrides({table: [kind] for table, kind in tables.items()}, precision, cluster)
    settings = load_config(config, overrides)
    schema = read_schema(settings.data.path / "schema.yaml")
    plan = plan_model(build_model(settings, schema, "meta"), settings, schema, "cpu", hosts, 1)
    return max(map(sum, sum_by_rank(plan, hosts).phases))


def _median_step(run: Path, warm_up: int) -> float:
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
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


def _known(chosen: list[str] | None, known: Any) -> list[str]:
    for name in chosen or []:
        if name not in known:
            raise UserError(f"{name!r} is none of {', '.join(known)}")
    return list(dict.fromkeys(chosen or known))


if __name__ == "__main__":
    run_command(main)
