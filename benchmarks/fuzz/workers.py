"""Cases on several workers, each a process that forks the commands, beside one that makes and judges their files."""

import gc
import importlib
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from cetnet.benchmarks.fuzz import bases
from cetnet.benchmarks.fuzz.cases import make, needs
from cetnet.benchmarks.fuzz.command import Command, Ended, run
from cetnet.benchmarks.fuzz.judge import Failure
from cetnet.benchmarks.fuzz.sandbox import adopt_orphans, unmount
from cetnet.trainer.console import console
from cetnet.trainer.processes.launcher import load_libraries

_CONTEXT = multiprocessing.get_context("fork")
_ALSO = (
    "cetnet.trainer.cli",
    "polars",
    "pyarrow.parquet",
    "cetnet.trainer.prepare.engine.tabular",
    "cetnet.trainer.prepare.sources.random",
)


@dataclass(frozen=True)
class Result:
    """A case that was run."""

    seed: int
    kind: str
    arguments: list[str]
    done: list[str]
    ended: Ended
    failures: list[Failure]


def run_cases(
    seeds: Sequence[int], jobs: int, folder: Path, keep: Path | None, sandboxed: bool
) -> Iterator[Result]:
    """Run the cases of these seeds as they end; copies of their files are kept in a folder."""
    os.environ |= {
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),
        "POLARS_MAX_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
    for name in ("tmp", "home", "bases", "matplotlib"):
        (folder / name).mkdir()
    load_libraries()
    for name in _ALSO:
        importlib.import_module(name)
    gc.freeze()
    adopt_orphans()
    _make_bases(folder / "bases", needs(seeds))
    connections = []
    for number in range(jobs):
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        arguments = (theirs, seeds[number::jobs], folder, number, keep, sandboxed)
        _CONTEXT.Process(target=_work, args=arguments).start()
        theirs.close()
        connections.append(ours)
    while connections:
        for connection in wait(connections):
            assert isinstance(connection, Connection)
            try:
                result = connection.recv()
            except EOFError:
                connections.remove(connection)
                continue
            if isinstance(result, Exception):
                raise result
            yield result


def _make_bases(folder: Path, needed: Collection[str]) -> None:
    writer = _CONTEXT.Process(target=bases.write_bases, args=(folder,))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    for arguments in bases.making(needed):
        ended = run(Command(arguments, folder))
        if ended.code:
            raise RuntimeError(f"cetnet {' '.join(arguments)}: exit code {ended.code}\n{ended.stderr}")


def _work(
    results: Connection,
    seeds: Sequence[int],
    folder: Path,
    number: int,
    keep: Path | None,
    sandboxed: bool,
) -> None:
    """Run cases one after the other; nothing is computed here, so that forks have no threads to miss."""
    adopt_orphans()
    ours, theirs = _CONTEXT.Pipe()
    maker = _CONTEXT.Process(target=_make_and_judge, args=(theirs, seeds, folder, number, keep, sandboxed))
    maker.start()
    theirs.close()
    own = frozenset([maker.pid or 0])
    while True:
        try:
            command: Command = ours.recv()
        except EOFError:
            break
        ours.send(run(command, own))
        results.send(ours.recv())
    maker.join()
    if maker.exitcode:
        results.send(RuntimeError("the fuzzer itself has failed, as is said above"))


def _make_and_judge(
    worker: Connection,
    seeds: Sequence[int],
    folder: Path,
    number: int,
    keep: Path | None,
    sandboxed: bool,
) -> None:
    for seed in seeds:
        place = folder / f"case-{number}"
        try:
            case = make(seed, folder / "bases", place / "here", sandboxed)
        except Exception as error:  # harm upon harm that can't be written; not counted
            console.print(f"case {seed} can't be made: {type(error).__name__}: {error}")
            shutil.rmtree(place)
            continue
        worker.send(case.command())
        ended = worker.recv()
        try:
            failures = case.judge(ended)
        except Exception as error:  # one case more to look at, not the end of all
            failures = [Failure("fuzzer", f"{case.kind}: {type(error).__name__}: {error}"[:200])]
        worker.send(Result(seed, case.kind, case.arguments, case.done + case.harmless, ended, failures))
        if keep:
            shutil.rmtree(keep / str(seed), ignore_errors=True)
            subprocess.run(["cp", "-a", str(place), str(keep / str(seed))], check=False)
        for mounted in case.mounts:
            unmount(mounted)
        shutil.rmtree(place)
    worker.close()
