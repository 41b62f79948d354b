"""What was run where and when: the head of a report, what it still lacks, and a line for each run."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cetnet.benchmarks.study.definition import Run, Study
from cetnet.benchmarks.study.report.document import Cell, Column, Commands, Link, Name, Section, Table, Text
from cetnet.benchmarks.study.report.run_files import read_environment, read_result, read_split

RUN_FILES = ("config.yaml", "plan.txt", "metrics.jsonl", "result.json", "environment.json")
"""Files of a run that its row links to."""


def facts(study: Study, command: str, finished: Sequence[Run], runs: Sequence[Run]) -> list[str]:
    """The report's head: what was trained on what, where and when."""
    result = read_split(finished[0].folder, study.split)
    environments = [read_environment(run.folder) for run in finished]
    started = [datetime.fromisoformat(environment["time"]) for environment in environments]
    seconds = [read_result(run.folder)["seconds"] for run in finished]
    ended = max(start + timedelta(seconds=length) for start, length in zip(started, seconds, strict=True))
    return [
        command,
        f"runs: {len(finished)} of {len(runs)}" if len(finished) < len(runs) else f"runs: {len(runs)}",
        f"variants: {len({run.variant for run in runs})}",
        f"seeds: {', '.join(map(str, sorted({run.seed for run in runs})))}",
        f"trained on {result['rows']:,} rows",
        f"split {study.split}: {result['splits'][study.split]['rows']:,} rows",
        f"on {_listed(environment['host'] for environment in environments)}"
        f" ({_listed(environment['machine'] for environment in environments)})",
        f"from {min(started):%Y-%m-%d %H:%M} to {ended:%Y-%m-%d %H:%M} UTC",
        f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    ]


def missing_runs(finished: Sequence[Run], runs: Sequence[Run]) -> str:
    """A sentence that says which runs the report lacks, or nothing."""
    missing: dict[str, list[str]] = {}
    done = {run.folder for run in finished}
    for run in runs:
        if run.folder not in done:
            missing.setdefault(run.variant, []).append(str(run.seed))
    if not missing:
        return ""
    names = [f"{variant} (seed {', '.join(seeds)})" for variant, seeds in missing.items()]
    if len(names) > 8:
        names[7:] = [f"{len(names) - 7} more variants"]
    return (
        f"A partial report: {len(runs) - len(finished)} of {len(runs)} runs are not finished: "
        f"{', '.join(names)}."
    )


def runs_section(runs: Sequence[Run], out: Path) -> Section:
    """Machines, versions and dates; each run's files; the commands."""
    environments = [read_environment(run.folder) for run in runs]
    results = [read_result(run.folder) for run in runs]
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index, environment in enumerate(environments):
        kinds.setdefault(tuple(_kind(environment).values()), []).append(index)
    kind_of = {index: number for number, members in enumerate(kinds.values(), 1) for index in members}

    hosts_of = [_listed(environments[i]["host"] for i in members) for members in kinds.values()]

    headings = list(_kind(environments[0]))
    columns = [
        Column(heading, [Cell(kind[position], kind[position]) for kind in kinds], is_text=True)
        for position, heading in enumerate(headings)
    ]
    columns += [
        Column("runs", [Cell(str(len(members)), len(members)) for members in kinds.values()]),
        Column("first", [_time(min(environments[i]["time"] for i in of)) for of in kinds.values()], True),
        Column("last", [_time(max(environments[i]["time"] for i in of)) for of in kinds.values()], True),
        Column("hosts", [Cell(hosts, hosts) for hosts in hosts_of], True),
    ]
    differing = [h for position, h in enumerate(headings) if len({kind[position] for kind in kinds}) > 1]
    text = "All runs were made in the same environment."
    if differing:
        text = f"The runs were made in {len(kinds)} environments, which differ in {', '.join(differing)}."
    first = {run.variant: run for run in reversed(runs)}
    names = [
        Name(run.variant, anchor=f"runs-{run.variant}" if first[run.variant] is run else "") for run in runs
    ]
    each = [
        Column("seed", [Cell(str(run.seed), run.seed) for run in runs]),
        Column("started (UTC)", [_time(environment["time"]) for environment in environments], True),
        Column("seconds", [Cell(f"{result['seconds']:.1f}", result["seconds"]) for result in results]),
        Column("files", [_files(run.folder, out) for run in runs], True),
    ]
    if len(kinds) > 1:
        each.insert(1, Column("environment", [Cell(str(kind_of[i]), kind_of[i]) for i in range(len(runs))]))
    commands = [f"cetnet train {shlex.join(run.arguments)}" for run in runs]
    return Section(
        "Runs",
        [
            Text(text),
            Table("environment", [Name(str(number)) for number in range(1, len(kinds) + 1)], columns),
            Table("variant", names, each),
            Commands("Commands, one for each run", commands),
        ],
    )


def _kind(environment: Mapping[str, Any]) -> dict[str, str]:
    """What the numbers or the speed of a run may depend on."""
    return {
        "machine": environment["machine"],
        "processes": str(environment["world_size"]),
        "commit": str(environment["commit"]),
        "python": environment["python"],
        **environment["versions"],
    }


def _time(text: str) -> Cell:
    return Cell(f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}", text)


def _listed(texts: Iterable[str]) -> str:
    names = sorted(set(texts))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _files(folder: Path, out: Path) -> Cell:
    """Links to the folder of a run and the files in it that say how it was made and what came of it."""
    place = quote(Path(os.path.relpath(folder, out)).as_posix())
    links = [Link(name, f"{place}/{name}") for name in RUN_FILES if (folder / name).exists()]
    return Cell("", links=(Link("folder", f"{place}/"), *links))
