"""The table of commands and failures, and each failure's cases under its signature."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cetnet.benchmarks.fuzz.workers import Result

_FIXED = ("commands", "ok", "refused", "failed")
_SHOWN = 3
_LINES = 4


class Report:
    """Counts what came of the cases, and writes a line of each to `cases.jsonl` in a folder."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._lines = (out / "cases.jsonl").open("w", encoding="utf-8", buffering=1)
        self.count = self.failed = 0
        self._codes: dict[str, Counter[str]] = defaultdict(Counter)
        self._groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
        self._last: Result | None = None

    def add(self, result: "Result") -> None:
        """Count a case."""
        self.count += 1
        self._last = result
        self._lines.write(json.dumps(_line(result)) + "\n")
        row = self._codes[result.kind]
        row["commands"] += 1
        if result.failures:
            self.failed += 1
            row["failed"] += 1
            for failure in result.failures:
                row[failure.kind] += 1
                self._groups[failure.kind, failure.signature].append(result)
        else:
            row["ok" if result.ended.code == 0 else "refused"] += 1

    def show(self, console: Console) -> None:
        """Print the table, and the failures by signature."""
        found = sorted({kind for row in self._codes.values() for kind in row} - set(_FIXED))
        table = Table("command", *_FIXED, *found, pad_edge=False)
        for name, row in sorted(self._codes.items()):
            table.add_row(name, *(str(row[kind] or "") for kind in (*_FIXED, *found)))
        console.print(table)
        for (kind, signature), results in sorted(self._groups.items(), key=lambda item: -len(item[1])):
            typer.echo(f"{len(results)} x {kind}: {signature}")
            for result in sorted(results, key=lambda result: len(result.done))[:_SHOWN]:
                typer.echo(f"    seed {result.seed}: {' '.join(result.arguments)!r:.150}")
                typer.echo(f"        {'; '.join(result.done)!r:.200}")
            for line in results[0].ended.stderr.splitlines()[-_LINES:]:
                typer.echo(f"        | {line[:200]}")

    def show_last(self) -> None:
        """Print what the last case was, and all that it printed."""
        if last := self._last:
            typer.echo(f"cetnet {' '.join(last.arguments)!r}")
            typer.echo(f"{'; '.join(last.done)!r}\nexit code {last.ended.code}, {last.ended.seconds:.2f} s")
            typer.echo(last.ended.stdout + last.ended.stderr)


def _line(result: "Result") -> dict[str, Any]:
    return {
        "seed": result.seed,
        "kind": result.kind,
        "arguments": result.arguments,
        "done": result.done,
        "code": result.ended.code,
        "seconds": round(result.ended.seconds, 2),
        "failures": [f"{failure.kind}: {failure.signature}" for failure in result.failures],
        "said": result.ended.stderr[-1000:],
    }
