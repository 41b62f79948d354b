"""The table of commands and failures, and each failure's cases under its signature."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cetnet.benchmarks.fuzz.workers import Result

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

    def show(self, console: Console, verbose: bool) -> None:
        """Print the table, and the groups of failures; `verbose`: the last case in full."""
        if verbose and self._last:
            last = self._last
            said = f"cetnet {last.arguments}\n{last.done}\nexit code {last.ended.code}, {last.ended.seconds:.2f} s"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
            console.print(last.ended.stdout, last.ended.stderr, markup=False, highlight=False, soft_wrap=True)
        kinds = list(dict.fromkeys(kind for row in self._codes.values() for kind in row))
        fixed = ["commands", "ok", "refused", "failed"]
        kinds = fixed + sorted(kind for kind in kinds if kind not in fixed)
        table = Table("command", *kinds, pad_edge=False)
        for name, row in sorted(self._codes.items()):
            table.add_row(name, *(str(row[kind] or "") for kind in kinds))
        console.print(table)
        for (kind, signature), results in sorted(self._groups.items(), key=lambda item: -len(item[1])):
            console.print(
                f"{len(results)} x {kind}: {signature}", markup=False, highlight=False, soft_wrap=True
            )
            for result in sorted(results, key=lambda result: len(result.done))[:_SHOWN]:
                console.print(
                    f"    seed {result.seed}: {' '.join(result.arguments)!r:.150}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
                console.print(
                    f"        {'; '.join(result.done)!r:.200}", markup=False, highlight=False, soft_wrap=True
                )
            for line in results[0].ended.stderr.splitlines()[-_LINES:]:
                console.print(f"        | {line[:200]}", markup=False, highlight=False, soft_wrap=True)


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
