"""How fast training on CPUs is, side by side with what people use and with the machine's limits.

    python -m cetnet.benchmarks.speed
    python -m cetnet.benchmarks.speed --only peers-22m --rounds 3

Ours is `cetnet train` as a user runs it: Parquet reader, metrics, logs, TensorBoard, checkpoints. The others have
their data ready in memory and do nothing but train. All get the same threads, and all keep the memory that they free:
ours by itself (`trainer/processes/malloc.py`), the others by glibc's environment variables (`ENVIRONMENT`).
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from cetnet.benchmarks.speed import reader_rate
from cetnet.benchmarks.speed.alternate import Contender, ContenderError, measure
from cetnet.benchmarks.speed.data import ROOT, dataset
from cetnet.benchmarks.speed.peers.environment import FOLDER, peers_python
from cetnet.benchmarks.speed.roofline import bounds
from cetnet.trainer.console import console
from cetnet.trainer.yaml_files import read_yaml

CONFIGS = Path(__file__).parent / "peers"
DEMO = Path(__file__).parents[2] / "configs/demo.yaml"
BF16 = "training.precision=bf16"
FUXICTR = "FuxiCTR"
FUXICTR_PLAIN = "FuxiCTR, glibc's defaults"
READER, ROOFLINE = "reader", "roofline"

THREADS = {"OMP_NUM_THREADS": "2"}
# glibc maps large blocks anew at each malloc, and faults their pages in again, unless told to keep them.
ENVIRONMENT = THREADS | {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}

Rates = Mapping[str, float]


@dataclass(frozen=True)
class Ratio:
    """A number out of the rates of one round, and what it must reach, if anything."""

    name: str
    of: Callable[[Rates], float]
    at_least: float | None = None
    at_most: float | None = None

    def reached(self, value: float) -> bool | None:
        """Whether a value is good enough; None if any is."""
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most

    @property
    def wanted(self) -> str:
        """What it must reach, in words."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"


@dataclass(frozen=True)
class Comparison:
    """Contenders that take turns on the same data."""

    name: str
    about: str
    data: tuple[str, ...]
    contenders: tuple[Contender, ...]
    ratios: tuple[Ratio, ...]


def comparisons(work: Path) -> list[Comparison]:
    """All of them; contenders write below `work`."""

    def contender(
        name: str, *command: str | Path, rows: int = 4096, python: str = sys.executable
    ) -> Contender:
        """A module with its arguments; PROGRESS among them stands for its file."""
        progress = work / f"{name.replace(' ', '-')}.jsonl"
        arguments = [str(progress) if part == "PROGRESS" else str(part) for part in command]
        return Contender(name, (python, "-m", *arguments), progress, rows, ENVIRONMENT)

    def ours(
        name: str, config: Path, data: str, *overrides: str, rows: int = 4096, ranks: int = 1
    ) -> Contender:
        run = work / name.replace(" ", "-")
        made = contender(
            name,
            *(
                "cetnet",
                "train",
                str(config),
                f"run_dir={run}",
                f"data.path={ROOT / data}",
                *overrides,
            ),
            *("--nproc", str(ranks)),
            rows=rows,
        )
        env = {**ENVIRONMENT, "OMP_NUM_THREADS": str(int(ENVIRONMENT["OMP_NUM_THREADS"]) // ranks)}
        return replace(made, progress=run / "metrics.jsonl", env=env)

    def dcnv2(name: str, data: str, *overrides: str, ranks: int = 1) -> Contender:
        return ours(name, CONFIGS / "dcnv2.yaml", data, *overrides, ranks=ranks)

    def din(name: str, *overrides: str) -> Contender:
        return ours(name, CONFIGS / "din.yaml", "events", *overrides, rows=1024)

    def demo(name: str, *chosen: str, embedding_dim: int = 16) -> Contender:
        components = read_yaml(DEMO)["model"]["components"]
        sized = {key: components[key] | {"embedding_dim": embedding_dim} for key in chosen}
        return ours(
            name,
            DEMO,
            "demo",
            f"model.components={json.dumps(sized)}",
            *(
                "training.device=cpu",
                "training.epochs=1000",
                "training.log_every=20",
                "checkpoint.every_steps=1000",
            ),
            rows=512,
        )

    def bare(data: str, *options: str) -> Contender:
        name = "bare TorchRec bf16" if options else "bare TorchRec fp32"
        return contender(
            name, "cetnet.benchmarks.speed.peers.torchrec_loop", ROOT / data, "PROGRESS", *options
        )

    def plain(data: str) -> Contender:
        return contender("plain PyTorch", "cetnet.benchmarks.speed.peers.plain", ROOT / data, "PROGRESS")

    def fuxictr(model: str, data: str, rows: int, name: str = FUXICTR) -> Contender:
        made = contender(
            name,
            *(
                "cetnet.benchmarks.speed.peers.fuxictr_peer",
                model,
                ROOT / data,
                "PROGRESS",
                "--batch-size",
                str(rows),
            ),
            rows=rows,
            python=str(FOLDER / "bin" / "python"),
        )
        return made if name == FUXICTR else replace(made, env=THREADS)

    def products(*options: str) -> Contender:
        name = "products bf16" if options else "products fp32"
        return contender(name, "cetnet.benchmarks.speed.roofline", "multiply", "PROGRESS", *options)

    return [
        Comparison(
            "peers-2m",
            "DCNv2, 2.16 M table rows, batch 4096",
            ("clicks-2m",),
            (
                dcnv2("ours fp32", "clicks-2m"),
                dcnv2("ours bf16", "clicks-2m", BF16),
                bare("clicks-2m"),
                bare("clicks-2m", "--bf16"),
                plain("clicks-2m"),
                fuxictr("dcnv2", "clicks-2m", 4096),
                fuxictr("dcnv2", "clicks-2m", 4096, FUXICTR_PLAIN),
                products(),
                products("--bf16"),
            ),
            (
                Ratio("DCNv2, ours (bf16) / FuxiCTR, 2.16 M rows", lambda r: r["ours bf16"] / r[FUXICTR], 3),
                Ratio(
                    f"DCNv2, ours (bf16) / {FUXICTR_PLAIN}, 2.16 M rows",
                    lambda r: r["ours bf16"] / r[FUXICTR_PLAIN],
                    3,
                ),
                Ratio("DCNv2, ours (fp32) / FuxiCTR, 2.16 M rows", lambda r: r["ours fp32"] / r[FUXICTR]),
                Ratio("DCNv2, ours (bf16) / plain PyTorch", lambda r: r["ours bf16"] / r["plain PyTorch"]),
                Ratio(
                    "DCNv2, ours / bare TorchRec, fp32",
                    lambda r: r["ours fp32"] / r["bare TorchRec fp32"],
                    0.95,
                ),
                Ratio(
                    "DCNv2, ours / bare TorchRec, bf16",
                    lambda r: r["ours bf16"] / r["bare TorchRec bf16"],
                    0.95,
                ),
                Ratio("DCNv2, share of the fp32 roofline", lambda r: r["ours fp32"] / r["products fp32"]),
                Ratio(
                    "DCNv2, share of the bf16 roofline", lambda r: r["ours bf16"] / r["products bf16"], 0.65
                ),
            ),
        ),
        Comparison(
            "peers-22m",
            "DCNv2, 21.6 M table rows, batch 4096",
            ("clicks-22m",),
            (
                dcnv2("ours bf16", "clicks-22m", BF16),
                bare("clicks-22m", "--bf16"),
                fuxictr("dcnv2", "clicks-22m", 4096),
            ),
            (
                Ratio("DCNv2, ours (bf16) / FuxiCTR, 21.6 M rows", lambda r: r["ours bf16"] / r[FUXICTR], 20),
                Ratio("the same / bare TorchRec, bf16", lambda r: r["ours bf16"] / r["bare TorchRec bf16"]),
            ),
        ),
        Comparison(
            "fuxictr-22m",
            "DCNv2, 21.6 M table rows, batch 4096; FuxiCTR as it is installed",
            ("clicks-22m",),
            (
                dcnv2("ours bf16", "clicks-22m", BF16),
                fuxictr("dcnv2", "clicks-22m", 4096, FUXICTR_PLAIN),
            ),
            (
                Ratio(
                    f"DCNv2, ours (bf16) / {FUXICTR_PLAIN}, 21.6 M rows",
                    lambda r: r["ours bf16"] / r[FUXICTR_PLAIN],
                    20,
                ),
            ),
        ),
        Comparison(  # apart, since each optimizer that touches every row keeps 5.5 GB
            "plain-22m",
            "DCNv2, 21.6 M table rows, batch 4096",
            ("clicks-22m",),
            (dcnv2("ours bf16", "clicks-22m", BF16), plain("clicks-22m")),
            (
                Ratio(
                    "DCNv2, ours (bf16) / plain PyTorch, 21.6 M rows",
                    lambda r: r["ours bf16"] / r["plain PyTorch"],
                ),
            ),
        ),
        Comparison(
            "din",
            "DIN, 50 events of an item and its category, batch 1024",
            ("events",),
            (
                din("ours fp32"),
                din("ours bf16", BF16),
                din("ours fp32 compiled", "training.compile=true"),
                din("ours bf16 compiled", BF16, "training.compile=true"),
                fuxictr("din", "events", 1024),
            ),
            (
                Ratio("DIN, ours (fp32) / FuxiCTR", lambda r: r["ours fp32"] / r[FUXICTR]),
                Ratio("DIN, ours (bf16) / FuxiCTR", lambda r: r["ours bf16"] / r[FUXICTR]),
                Ratio("DIN, ours (fp32, compiled) / FuxiCTR", lambda r: r["ours fp32 compiled"] / r[FUXICTR]),
                Ratio("DIN, ours (bf16, compiled) / FuxiCTR", lambda r: r["ours bf16 compiled"] / r[FUXICTR]),
            ),
        ),
        Comparison(
            "ensemble",
            "CETNet of InterFormer and DHEN at the demo's settings, batch 512, fp32",
            ("demo",),
            (
                demo("CETNet", "interformer", "dhen"),
                demo("InterFormer", "interformer"),
                demo("DHEN", "dhen"),
                demo("InterFormer d=32", "interformer", embedding_dim=32),
                demo("DHEN d=32", "dhen", embedding_dim=32),
            ),
            (
                Ratio(
                    "CETNet step / (InterFormer step + DHEN step)",
                    lambda r: 1 / r["CETNet"] / (1 / r["InterFormer"] + 1 / r["DHEN"]),
                    at_most=0.9,
                ),
                Ratio(
                    "CETNet step / step of InterFormer with d=32",
                    lambda r: r["InterFormer d=32"] / r["CETNet"],
                ),
                Ratio("CETNet step / step of DHEN with d=32", lambda r: r["DHEN d=32"] / r["CETNet"]),
            ),
        ),
        Comparison(
            "ranks",
            "DCNv2, 2.16 M table rows, batch 4096, bf16",
            ("clicks-2m",),
            (
                dcnv2("1 rank x 2 threads", "clicks-2m", BF16),
                dcnv2("2 ranks x 1 thread", "clicks-2m", BF16, ranks=2),
            ),
            (
                Ratio(
                    "2 ranks x 1 thread / 1 rank x 2 threads",
                    lambda r: r["2 ranks x 1 thread"] / r["1 rank x 2 threads"],
                    0.95,
                ),
            ),
        ),
        Comparison(
            "rows",
            "DCNv2, batch 4096, bf16; no checkpoints",
            ("clicks-100k", "clicks-100m"),
            (
                dcnv2("10^5 rows", "clicks-100k", BF16, "checkpoint.every_steps=null"),
                dcnv2("10^8 rows", "clicks-100m", BF16, "checkpoint.every_steps=null"),
            ),
            (
                Ratio(
                    "step time at 10^8 rows / at 10^5 rows",
                    lambda r: r["10^5 rows"] / r["10^8 rows"],
                    at_most=1.5,
                ),
            ),
        ),
        Comparison(
            "evaluation",
            "DCNv2, 2.16 M table rows, batch 4096, bf16; the metrics at the end of an evaluation are not in",
            ("clicks-2m",),
            (
                dcnv2("training", "clicks-2m", BF16),
                contender(
                    "evaluation",
                    "cetnet.benchmarks.speed.scoring",
                    CONFIGS / "dcnv2.yaml",
                    "PROGRESS",
                    *(BF16, f"data.path={ROOT / 'clicks-2m'}"),
                ),
            ),
            (
                Ratio(
                    "evaluation rows/s / training rows/s",
                    lambda r: r["evaluation"] / r["training"],
                    3,
                ),
            ),
        ),
    ]


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this: roofline, reader, peers-2m, peers-22m, fuxictr-22m, plain-22m, din, ensemble, ranks, "
            "rows or evaluation; repeat it.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Windows of each contender.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a window.")] = 6.0,
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.md and logs.")] = Path(
        "runs/throughput"
    ),
) -> None:
    """Measure training speed against other trainers and the machine's limits.

    Contenders of a comparison take turns: each is warmed up, then stopped;
    a window of one, a window of the next, several rounds. Ratios are of
    windows of one round; given are the median and the extremes.

    FuxiCTR is installed into an environment of its own, .peers/, on the first
    run; data go to data/throughput/. 24 GB of memory; 20 minutes on 2 cores.
    The machine should do nothing else.

    Example: python -m cetnet.benchmarks.speed --only din --rounds 3 --seconds 5
    """
    work, logs = out / ".runs", out / "logs"
    every = comparisons(work)
    names = [ROOFLINE, READER, *(comparison.name for comparison in every)]
    if unknown := sorted(set(only or ()) - set(names)):
        raise typer.BadParameter(
            f"unknown: {', '.join(unknown)}; there are {', '.join(names)}", param_hint="--only"
        )
    chosen = only or names
    shutil.rmtree(work, ignore_errors=True)  # of a benchmark that was killed
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "rounds": rounds,
        "seconds": seconds,
        "comparisons": {},
    }
    if ROOFLINE in chosen:
        console.print("roofline", highlight=False)
        results["roofline"] = roofline()
        write(out, results, every)
    if READER in chosen:
        results["reader"] = reader_rate.measure("criteo", Path("data/reader_rate"), rounds)
        write(out, results, every)
    failed = False
    for comparison in every:
        if comparison.name in chosen:
            console.print(f"{comparison.name}: {comparison.about}", highlight=False)
            try:
                result = run(comparison, rounds, seconds, logs / comparison.name)
            except ContenderError as error:
                console.print(f"  {error}", highlight=False)
                result, failed = {"rates": {}, "missing": {comparison.name: str(error)}}, True
            finally:
                shutil.rmtree(work, ignore_errors=True)
            results["comparisons"][comparison.name] = result
            write(out, results, every)
    print((out / "table.md").read_text())
    raise typer.Exit(int(failed))


def run(comparison: Comparison, rounds: int, seconds: float, logs: Path) -> dict[str, Any]:
    """Rates of each contender by round, and why those that are missing are.

    Raises:
        ContenderError: one failed.
    """
    for name in comparison.data:
        dataset(name)
    contenders, missing = comparison.contenders, {}
    if any(c.name.startswith(FUXICTR) for c in contenders) and peers_python() is None:
        contenders = tuple(c for c in contenders if not c.name.startswith(FUXICTR))
        missing = {FUXICTR: "could not be installed"}
    rates = measure(
        contenders, rounds, seconds, logs, lambda text: console.print(f"  {text}", highlight=False)
    )
    return {"rates": rates, "missing": missing}


def roofline() -> dict[str, float]:
    """The machine's limits, measured by a process with the contenders' environment."""
    done = subprocess.run(
        [sys.executable, "-m", "cetnet.benchmarks.speed.roofline", "report"],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout))


def describe_machine() -> dict[str, str]:
    """What the numbers were measured on, and when."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
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


def write(out: Path, results: Mapping[str, Any], every: Sequence[Comparison]) -> None:
    """Write results.json and table.md anew, each whole."""
    texts = {"results.json": json.dumps(results, indent=1), "table.md": markdown(results, every)}
    for name, text in texts.items():
        aside = out / f".{name}"
        aside.write_text(text + "\n")
        aside.rename(out / name)


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
            lambda r, order=order: r[f"reader, {order}"] / r["pyarrow"],  # type: ignore[misc]
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


if __name__ == "__main__":
    typer.run(main)
