"""The comparisons: contenders that take turns on the same data, and the ratios of their speeds that are wanted.

All contenders get the same threads, and all keep the memory that they free: ours by itself
(`trainer/processes/malloc.py`), the others by glibc's environment variables (`ENVIRONMENT`).
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cetnet.benchmarks.speed.alternate import Contender
from cetnet.benchmarks.speed.data import ROOT
from cetnet.benchmarks.speed.peers.environment import FOLDER
from cetnet.trainer.processes.launcher import CETNET
from cetnet.trainer.yaml_files import read_yaml

CONFIGS = Path(__file__).parent / "peers"
DEMO = Path(__file__).parents[2] / "configs/demo.yaml"
BF16 = "training.precision=bf16"
FUXICTR = "FuxiCTR"
FUXICTR_PLAIN = "FuxiCTR, glibc's defaults"
MODULE = (sys.executable, "-P", "-m")
PROGRESS = "PROGRESS"  # an argument that stands for the file in which a contender says how far it is

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


def quotient(above: str, below: str) -> Callable[[Rates], float]:
    """Rows a second of one contender over those of another."""
    return lambda rates: rates[above] / rates[below]


# --- contenders ----------------------------------------------------------------------------------------


def contender(work: Path, name: str, command: Sequence[str | Path], rows: int = 4096) -> Contender:
    """A program that takes `rows` rows a step; PROGRESS among its arguments stands for a file below `work`."""
    progress = work / f"{name.replace(' ', '-')}.jsonl"
    arguments = [str(progress if part == PROGRESS else part) for part in command]
    return Contender(name, arguments, progress, rows, ENVIRONMENT)


def ours(
    work: Path, name: str, config: Path, data: str, *overrides: str, rows: int = 4096, ranks: int = 1
) -> Contender:
    """`cetnet train` as a user runs it: reader, metrics, logs, TensorBoard, checkpoints."""
    run = work / name.replace(" ", "-")
    settings = [f"run_dir={run}", f"data.path={ROOT / data}", *overrides]
    made = contender(work, name, [*CETNET, "train", config, *settings, "--nproc", str(ranks)], rows)
    env = {**ENVIRONMENT, "OMP_NUM_THREADS": str(int(ENVIRONMENT["OMP_NUM_THREADS"]) // ranks)}
    return replace(made, progress=run / "metrics.jsonl", env=env)


def dcnv2(work: Path, name: str, data: str, *overrides: str, ranks: int = 1) -> Contender:
    """Our DCNv2."""
    return ours(work, name, CONFIGS / "dcnv2.yaml", data, *overrides, ranks=ranks)


def bare(work: Path, data: str, *options: str) -> Contender:
    """DCNv2 in a bare TorchRec loop."""
    name = "bare TorchRec bf16" if options else "bare TorchRec fp32"
    module = "cetnet.benchmarks.speed.peers.torchrec_loop"
    return contender(work, name, [*MODULE, module, ROOT / data, PROGRESS, *options])


def plain(work: Path, data: str) -> Contender:
    """DCNv2 in plain PyTorch."""
    module = "cetnet.benchmarks.speed.peers.plain"
    return contender(work, "plain PyTorch", [*MODULE, module, ROOT / data, PROGRESS])


def fuxictr(work: Path, model: str, data: str, rows: int = 4096, name: str = FUXICTR) -> Contender:
    """FuxiCTR's `dcnv2` or `din` in its own environment; FUXICTR_PLAIN doesn't keep the memory that it frees."""
    module = (FOLDER / "bin" / "python", "-P", "-m", "cetnet.benchmarks.speed.peers.fuxictr_peer")
    options = (ROOT / data, PROGRESS, "--batch-size", str(rows))
    made = contender(work, name, (*module, model, *options), rows)
    return made if name == FUXICTR else replace(made, env=THREADS)


def products(work: Path, *options: str) -> Contender:
    """The matrix products of DCNv2 alone."""
    name = "products bf16" if options else "products fp32"
    return contender(
        work, name, [*MODULE, "cetnet.benchmarks.speed.roofline", "multiply", PROGRESS, *options]
    )


# --- comparisons ---------------------------------------------------------------------------------------


def peers_2m(work: Path) -> Comparison:
    """All trainers of DCNv2, on tables that fit in the caches at least in part."""
    data = "clicks-2m"
    return Comparison(
        "peers-2m",
        "DCNv2, 2.16 M table rows, batch 4096",
        (data,),
        (
            dcnv2(work, "ours fp32", data),
            dcnv2(work, "ours bf16", data, BF16),
            bare(work, data),
            bare(work, data, "--bf16"),
            plain(work, data),
            fuxictr(work, "dcnv2", data),
            fuxictr(work, "dcnv2", data, name=FUXICTR_PLAIN),
            products(work),
            products(work, "--bf16"),
        ),
        (
            Ratio("DCNv2, ours (bf16) / FuxiCTR, 2.16 M rows", quotient("ours bf16", FUXICTR), 3),
            Ratio(
                f"DCNv2, ours (bf16) / {FUXICTR_PLAIN}, 2.16 M rows", quotient("ours bf16", FUXICTR_PLAIN), 3
            ),
            Ratio("DCNv2, ours (fp32) / FuxiCTR, 2.16 M rows", quotient("ours fp32", FUXICTR)),
            Ratio("DCNv2, ours (bf16) / plain PyTorch", quotient("ours bf16", "plain PyTorch")),
            Ratio("DCNv2, ours / bare TorchRec, fp32", quotient("ours fp32", "bare TorchRec fp32"), 0.95),
            Ratio("DCNv2, ours / bare TorchRec, bf16", quotient("ours bf16", "bare TorchRec bf16"), 0.95),
            Ratio("DCNv2, share of the fp32 roofline", quotient("ours fp32", "products fp32")),
            Ratio("DCNv2, share of the bf16 roofline", quotient("ours bf16", "products bf16"), 0.65),
        ),
    )


def peers_22m(work: Path) -> Comparison:
    """Trainers of DCNv2 on large tables."""
    data = "clicks-22m"
    return Comparison(
        "peers-22m",
        "DCNv2, 21.6 M table rows, batch 4096",
        (data,),
        (dcnv2(work, "ours bf16", data, BF16), bare(work, data, "--bf16"), fuxictr(work, "dcnv2", data)),
        (
            Ratio("DCNv2, ours (bf16) / FuxiCTR, 21.6 M rows", quotient("ours bf16", FUXICTR), 20),
            Ratio("the same / bare TorchRec, bf16", quotient("ours bf16", "bare TorchRec bf16")),
        ),
    )


def fuxictr_22m(work: Path) -> Comparison:
    """FuxiCTR without help, on large tables; apart, as `plain_22m` is."""
    data = "clicks-22m"
    return Comparison(
        "fuxictr-22m",
        "DCNv2, 21.6 M table rows, batch 4096; FuxiCTR as it is installed",
        (data,),
        (dcnv2(work, "ours bf16", data, BF16), fuxictr(work, "dcnv2", data, name=FUXICTR_PLAIN)),
        (
            Ratio(
                f"DCNv2, ours (bf16) / {FUXICTR_PLAIN}, 21.6 M rows",
                quotient("ours bf16", FUXICTR_PLAIN),
                20,
            ),
        ),
    )


def plain_22m(work: Path) -> Comparison:
    """Plain PyTorch on large tables; apart, since each optimizer that touches every row keeps 5.5 GB."""
    data = "clicks-22m"
    return Comparison(
        "plain-22m",
        "DCNv2, 21.6 M table rows, batch 4096",
        (data,),
        (dcnv2(work, "ours bf16", data, BF16), plain(work, data)),
        (Ratio("DCNv2, ours (bf16) / plain PyTorch, 21.6 M rows", quotient("ours bf16", "plain PyTorch")),),
    )


def din(work: Path) -> Comparison:
    """A model that reads histories."""

    def our_din(name: str, *overrides: str) -> Contender:
        return ours(work, name, CONFIGS / "din.yaml", "events", *overrides, rows=1024)

    compiled = "training.compile=true"
    return Comparison(
        "din",
        "DIN, 50 events of an item and its category, batch 1024",
        ("events",),
        (
            our_din("ours fp32"),
            our_din("ours bf16", BF16),
            our_din("ours fp32 compiled", compiled),
            our_din("ours bf16 compiled", BF16, compiled),
            fuxictr(work, "din", "events", 1024),
        ),
        (
            Ratio("DIN, ours (fp32) / FuxiCTR", quotient("ours fp32", FUXICTR)),
            Ratio("DIN, ours (bf16) / FuxiCTR", quotient("ours bf16", FUXICTR)),
            Ratio("DIN, ours (fp32, compiled) / FuxiCTR", quotient("ours fp32 compiled", FUXICTR)),
            Ratio("DIN, ours (bf16, compiled) / FuxiCTR", quotient("ours bf16 compiled", FUXICTR)),
        ),
    )


def ensemble(work: Path) -> Comparison:
    """The demo's ensemble beside its components alone."""
    components = read_yaml(DEMO)["model"]["components"]

    def demo(name: str, *chosen: str, embedding_dim: int = 16) -> Contender:
        sized = {key: components[key] | {"embedding_dim": embedding_dim} for key in chosen}
        settings = [
            f"model.components={json.dumps(sized)}",
            "training.device=cpu",
            "training.epochs=1000",
            "training.log_every=20",
            "checkpoint.every_steps=1000",
        ]
        return ours(work, name, DEMO, "demo", *settings, rows=512)

    return Comparison(
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
            Ratio("CETNet step / step of InterFormer with d=32", quotient("InterFormer d=32", "CETNet")),
            Ratio("CETNet step / step of DHEN with d=32", quotient("DHEN d=32", "CETNet")),
        ),
    )


def ranks(work: Path) -> Comparison:
    """Two cores as two processes and as one."""
    one, two = "1 rank x 2 threads", "2 ranks x 1 thread"
    return Comparison(
        "ranks",
        "DCNv2, 2.16 M table rows, batch 4096, bf16",
        ("clicks-2m",),
        (dcnv2(work, one, "clicks-2m", BF16), dcnv2(work, two, "clicks-2m", BF16, ranks=2)),
        (Ratio(f"{two} / {one}", quotient(two, one), 0.95),),
    )


def rows(work: Path) -> Comparison:
    """Small tables and very large ones."""
    no_checkpoints = "checkpoint.every_steps=null"
    return Comparison(
        "rows",
        "DCNv2, batch 4096, bf16; no checkpoints",
        ("clicks-100k", "clicks-100m"),
        (
            dcnv2(work, "10^5 rows", "clicks-100k", BF16, no_checkpoints),
            dcnv2(work, "10^8 rows", "clicks-100m", BF16, no_checkpoints),
        ),
        (Ratio("step time at 10^8 rows / at 10^5 rows", quotient("10^5 rows", "10^8 rows"), at_most=1.5),),
    )


def evaluation(work: Path) -> Comparison:
    """Evaluating beside training."""
    arguments = (CONFIGS / "dcnv2.yaml", PROGRESS, BF16, f"data.path={ROOT / 'clicks-2m'}")
    return Comparison(
        "evaluation",
        "DCNv2, 2.16 M table rows, batch 4096, bf16; the metrics at the end of an evaluation are not in",
        ("clicks-2m",),
        (
            dcnv2(work, "training", "clicks-2m", BF16),
            contender(work, "evaluation", (*MODULE, "cetnet.benchmarks.speed.evaluation_loop", *arguments)),
        ),
        (Ratio("evaluation rows/s / training rows/s", quotient("evaluation", "training"), 3),),
    )


def comparisons(work: Path) -> list[Comparison]:
    """All of them; contenders write below `work`."""
    every = (peers_2m, peers_22m, fuxictr_22m, plain_22m, din, ensemble, ranks, rows, evaluation)
    return [make(work) for make in every]
