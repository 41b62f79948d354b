"""What was measured of serving, judged by what must be reached."""

from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from cetnet.benchmarks.measured import spread

_TOLD = {True: "yes", False: "no", None: ""}


class Must(NamedTuple):
    """A figure and its limit.

    Attributes:
        what: is measured.
        wanted: the limit.
        measured: the figure.
        reached: whether it keeps the limit; None if there is none.
    """

    what: str
    wanted: str
    measured: str
    reached: bool | None


def markdown(results: Mapping[str, Any]) -> str:
    """What must be reached, then the rows/s; `results` has the parts that were measured, by their names."""
    lines = [
        f"{results['machine']}, {results['started']}",
        "",
        "| what | wanted | measured | reached |",
        "|:--|--:|--:|:--|",
    ]
    judges = {"rates": _of_rates, "int8": _of_int8, "server": _of_server, "like": _of_like}
    for part, judge in judges.items():
        if part in results:
            lines += [f"| {' | '.join(must[:3])} | {_TOLD[must.reached]} |" for must in judge(results[part])]
    lines += [f"| {part} | | failed: {why} | no |" for part, why in results["failed"].items()]
    if "rates" in results:
        lines += ["", "| one thread, batches of 512 | rows/s |", "|:--|--:|"]
        lines += [f"| {name} | {spread(rates, ',.0f')} |" for name, rates in results["rates"].items()]
    if "like" in results:
        lines += ["", "| all cores | rows/s |", "|:--|--:|"]
        lines += [
            f"| {name} | {spread(results['like'][name], ',.0f')} |" for name in ("prepare", "prepare --like")
        ]
    return "\n".join(lines)


def _of_rates(rates: Mapping[str, list[float]]) -> list[Must]:
    of_trainer, *others = rates
    musts = []
    for target, wanted in {"pt2": 1.0, "aoti": 1.5, "onnx": None}.items():
        if target in others:
            ratios = [a / b for a, b in zip(rates[target], rates[of_trainer], strict=True)]
            what, limit = f"rows/s of {target} / {of_trainer}", f">= {wanted}" if wanted else ""
            reached = None if wanted is None else median(ratios) >= wanted
            musts.append(Must(what, limit, spread(ratios, ".2f"), reached))
    return musts


def _of_int8(about: Mapping[str, Any]) -> list[Must]:
    compared = about["compared"]
    size = about["table_bytes"] / about["table_bytes_float32"]
    worse = 100 * (compared["ne"] / compared["ne_float32"] - 1)
    return [
        Must("int8 tables: bytes / fp32's", "<= 0.3", f"{size:.3f}", size <= 0.3),
        Must(f"int8 tables: NE on {compared['rows']:,} rows", "<= +0.02 %", f"{worse:+.4f} %", worse <= 0.02),
    ]


def _of_server(found: Mapping[str, Any]) -> list[Must]:
    tail, beside = found["p99_over_lone"], (found["resident_bytes"] - found["tables_bytes"]) / 1e6
    lost, spoilt = found["swap_lost"], len(found["fuzz_wrong"]) + (not found["fuzz_lives"])
    return [
        Must("server: p99 at 60 % of its peak / median of a lone request", "<= 5", f"{tail:.1f}", tail <= 5),
        Must(
            f"requests lost of {found['swap_requests']:,} in {found['swaps']:.0f} swaps under load",
            "0",
            str(lost),
            not lost and found["swaps"] >= 10,
        ),
        Must(
            f"of {found['fuzzed']:,} fuzzed requests: end it, hang it, or are answered wrongly",
            "0",
            str(spoilt),
            not spoilt,
        ),
        Must("memory of the server beside the tables", "< 600 MB", f"{beside:.0f} MB", beside < 600),
    ]


def _of_like(found: Mapping[str, Any]) -> list[Must]:
    return [
        Must("prepare --like / prepare, rows/s", ">= 1.0", f"{found['ratio']:.2f}", found["ratio"] >= 1.0)
    ]
