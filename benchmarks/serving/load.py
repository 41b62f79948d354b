"""A model server under load: latency by load, swaps, a kill, overload, malformed requests, memory.

    python -m cetnet.benchmarks.serving.load EXPORT [--out DIR]

Server and clients share this machine's cores.
"""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.measured import machine
from cetnet.benchmarks.serving.clients import (
    CANDIDATES,
    Load,
    Payload,
    as_fast_as_it_answers,
    at_a_rate,
    one_after_the_other,
    payloads,
)
from cetnet.benchmarks.serving.server_process import Running, started
from cetnet.trainer.console import console, output
from cetnet.trainer.files import write_json, write_text

LEVELS = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2)
_SWAPS = 10


def measure(export: Path, out: Path, seconds: float = 6.0, fuzzed: int = 10_000) -> dict[str, Any]:
    """Measure a server of this export; writes results.json, table.md and plot.png; returns the results.

    Args:
        export: what `cetnet export` wrote.
        out: folder to write to.
        seconds: of each level of load.
        fuzzed: malformed and right requests.
    """
    out.mkdir(parents=True, exist_ok=True)
    sent = payloads(export)
    results: dict[str, Any] = {"machine": machine(), "candidates": CANDIDATES, "export": export.name}
    steps: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("latency by load", lambda: _latency(export, sent, seconds)),
        ("swaps and a stop under load", lambda: _swaps(export, sent)),
        ("a kill", lambda: _kill(export, sent)),
        ("overload", lambda: _overload(export, sent, seconds)),
        ("malformed requests", lambda: _fuzz(export, fuzzed)),
    ]
    for what, step in steps:
        console.print(f"{what} ...")
        results |= step()
    write_json(out / "results.json", results)
    write_text(out / "table.md", table(results) + "\n")
    from cetnet.benchmarks.serving.plot import plot_latency

    plot_latency(results, out / "plot.png")
    return results


def _latency(export: Path, sent: Sequence[Payload], seconds: float) -> dict[str, Any]:
    """Alone, as fast as it answers, and at shares of that rate."""
    with started(export) as server:
        ready = server.seconds
        asyncio.run(one_after_the_other(server, sent, 50))  # warm
        lone = asyncio.run(one_after_the_other(server, sent, 300))
        fastest = asyncio.run(as_fast_as_it_answers(server, sent, 16, seconds))
        levels = []
        for level in LEVELS:
            # As many answers at 60 %, whose 99 % quantile is judged, as two seconds of others would give.
            span = 3 * seconds if level == 0.6 else seconds
            load = asyncio.run(at_a_rate(server, sent, level * fastest.rate, span, seed=int(100 * level)))
            levels.append({"share": level, **_told(load)})
        loads = [lone, fastest]
        rss = server.metric("process_resident_memory_bytes")
        code = server.end()
    judged = next(each for each in levels if each["share"] == 0.6)
    return {
        "ready_seconds": ready,
        "lone": _told(lone),
        "fastest": _told(fastest),
        "levels": levels,
        "p99_over_lone": judged["p99"] / lone.quantile(0.5),
        "resident_bytes": rss,
        "tables_bytes": tables_bytes(export),
        "exit_code": code,
        "wrong": sum(load.wrong for load in loads) + sum(each["wrong"] for each in levels),
    }


def tables_bytes(export: Path) -> int:
    """Bytes of the embedding tables; 0 if the export doesn't say."""
    about = json.loads((export / "about.json").read_text(encoding="utf-8"))
    return int(about.get("table_bytes", 0))


def _told(load: Load) -> dict[str, Any]:
    return {
        "rate": load.rate,
        "p50": load.quantile(0.5),
        "p99": load.quantile(0.99),
        "outcomes": dict(load.outcomes),
        "failed": load.failed,
        "wrong": load.wrong,
    }


def _swaps(export: Path, sent: Sequence[Payload]) -> dict[str, Any]:
    """New versions come into a folder of exports under load; then the server is told to stop."""
    with TemporaryDirectory(dir=export.parent) as name:
        folder = Path(name)
        _add_version(export, folder, 0)
        with started(folder) as server:
            fastest = asyncio.run(as_fast_as_it_answers(server, sent, 16, 3.0))

            async def swap_under_load() -> Load:
                stop = asyncio.Event()
                asked = asyncio.create_task(at_a_rate(server, sent, 0.4 * fastest.rate, 300.0, stop))
                for number in range(1, _SWAPS + 1):
                    await asyncio.to_thread(_add_version, export, folder, number)
                    await asyncio.to_thread(_await_version, server, number)
                stop.set()
                return await asked

            before = server.metric("process_resident_memory_bytes")
            load = asyncio.run(swap_under_load())
            swaps = server.metric("cetnet_model_swaps_total")
            after = server.metric("process_resident_memory_bytes")

            async def stop_under_load() -> tuple[Load, int]:
                asked = asyncio.create_task(as_fast_as_it_answers(server, sent, 8, 2.0))
                await asyncio.sleep(0.7)
                code = await asyncio.to_thread(server.end)
                return await asked, code

            stopped, code = asyncio.run(stop_under_load())
    lost = {what: n for what, n in stopped.outcomes.items() if what not in ("200", "ClientConnectorError")}
    return {
        "swaps": swaps,
        "swap_versions": len(load.versions),
        "swap_requests": sum(load.outcomes.values()),
        "swap_lost": load.failed,
        "swap_wrong": load.wrong,
        "swap_p50": load.quantile(0.5),
        "swap_p99": load.quantile(0.99),
        "swap_grown_bytes": after - before,
        "stop_answered": len(stopped.latencies),
        "stop_lost": lost,
        "stop_exit_code": code,
    }


def _add_version(export: Path, folder: Path, number: int) -> None:
    """The same export under a later name, whole at once."""
    aside = folder / f".{number}"
    shutil.copytree(export, aside, copy_function=os.link)
    aside.rename(folder / f"v{number}")


def _await_version(server: Running, number: int) -> None:
    while json.loads(server.get(f"/v2/models/{server.name}")[1])["versions"] != [f"v{number}"]:
        time.sleep(0.05)


def _kill(export: Path, sent: Sequence[Payload]) -> dict[str, Any]:
    """Killed under load and started again on its ports: how long nobody answers, and what comes then."""
    with started(export) as server:
        ports = ["--port", str(server.port), "--grpc-port", str(server.grpc_port)]

        async def kill_under_load() -> Load:
            asked = asyncio.create_task(as_fast_as_it_answers(server, sent, 8, 1.5))
            await asyncio.sleep(0.7)
            server.process.kill()
            return await asked

        killed = asyncio.run(kill_under_load())
    begin = time.monotonic()
    with started(export, *ports) as server:
        away = time.monotonic() - begin
        again = asyncio.run(as_fast_as_it_answers(server, sent, 8, 2.0))
        server.end()
    return {
        "kill_answered": len(killed.latencies),
        "kill_unanswered": killed.failed,
        "kill_away_seconds": away,
        "kill_again": _told(again),
    }


def _overload(export: Path, sent: Sequence[Payload], seconds: float) -> dict[str, Any]:
    """Twice what it can do, with room for five requests to wait."""
    with started(export, "--max-waiting-rows", str(5 * CANDIDATES)) as server:
        fastest = asyncio.run(as_fast_as_it_answers(server, sent, 4, 3.0))
        load = asyncio.run(at_a_rate(server, sent, 2 * fastest.rate, seconds))
        after = asyncio.run(one_after_the_other(server, sent, 50))
        server.end()
    return {"overload": _told(load), "overload_after": _told(after)}


def _fuzz(export: Path, requests: int) -> dict[str, Any]:
    from cetnet.benchmarks.serving.fuzz import fuzz
    from cetnet.benchmarks.serving.fuzzer import Server

    with started(export) as server:
        where = Server(server.host, server.port, server.grpc_port, server.name)
        begin = time.monotonic()
        findings = fuzz(export, where, requests)
        took = time.monotonic() - begin
        lives = server.process.poll() is None and server.get("/v2/health/ready")[0] == 200
        server.end()
    return {
        "fuzzed": sum(findings.outcomes.values()),
        "fuzz_outcomes": dict(findings.outcomes.most_common()),
        "fuzz_wrong": findings.wrong,
        "fuzz_lives": lives,
        "fuzz_seconds": took,
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    beside = (results["resident_bytes"] - results["tables_bytes"]) / 1e6
    refused = results["overload"]["outcomes"].get("503", 0)
    lines = [
        f"{results['machine']}, shared by server and clients; {results['candidates']} candidates a request.",
        "",
        "| load, % of peak | requests/s | p50, ms | p99, ms | without scores |",
        "|--:|--:|--:|--:|--:|",
        _row("one alone", results["lone"]),
        *(_row(f"{each['share']:.0%}", each) for each in results["levels"]),
        _row("16 clients, each when answered (peak)", results["fastest"]),
        "",
        "| what | wanted | measured |",
        "|---|---|---|",
        f"| p99 at 60 % of peak / median alone | <= 5 | {results['p99_over_lone']:.1f} |",
        f"| swaps under load; requests; lost; wrong | {_SWAPS}; ; 0; 0 | {results['swaps']:.0f}; "
        f"{results['swap_requests']}; {results['swap_lost']}; {results['swap_wrong']} |",
        f"| p99 during swaps, ms; memory grown by, MB | | {results['swap_p99']:.0f}; "
        f"{results['swap_grown_bytes'] / 1e6:.0f} |",
        f"| stopped under load: answered; lost; exit code | ; none; 0 | {results['stop_answered']}; "
        f"{results['stop_lost'] or 'none'}; {results['stop_exit_code']} |",
        f"| killed under load: seconds until it answers again | | {results['kill_away_seconds']:.1f} |",
        f"| twice the peak: answered a second; refused (503); p99 of answered, ms | | "
        f"{results['overload']['rate']:.0f}; {refused}; {results['overload']['p99']:.0f} |",
        f"| fuzzed requests: that end or hang it, or are answered wrongly | 0 of {results['fuzzed']} | "
        f"{len(results['fuzz_wrong']) + (not results['fuzz_lives'])} |",
        f"| memory beside the tables, MB | < 600 | {beside:.0f} |",
        f"| wrong answers under load | 0 | {results['wrong']} |",
    ]
    return "\n".join(lines)


def _row(name: str, of: dict[str, Any]) -> str:
    return f"| {name} | {of['rate']:.0f} | {of['p50']:.1f} | {of['p99']:.1f} | {of['failed']} |"


def main(
    export: Annotated[Path, typer.Argument(help="What `cetnet export` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.md and plot.png.")] = Path(
        "serving_load"
    ),
    seconds: Annotated[float, typer.Option(min=1, help="Of each level of load.")] = 6.0,
    fuzzed: Annotated[int, typer.Option(min=4, help="Requests to fuzz with.")] = 10_000,
) -> None:
    """Measure `cetnet serve` of an export: under load, swapped, stopped, killed, overloaded, fuzzed."""
    from cetnet.trainer.serve.exports import check_served

    check_served(export)
    output.print(table(measure(export, out, seconds, fuzzed)))


if __name__ == "__main__":
    run_command(main)
