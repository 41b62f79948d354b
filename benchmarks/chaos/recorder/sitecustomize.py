"""Python runs this at start-up where PYTHONPATH names its folder: jobs of `cetnet.benchmarks.chaos` and of the tests.

It writes down the rows of every step into LEDGER, a file per attempt and rank, and, if there is HOLD_AT, holds each
rank at that step of the first attempt until there is a file LEDGER/release. What is run stays the command that
users run.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def recorded(run_pipeline: Callable[..., Iterable[Any]]) -> Callable[..., Iterator[Any]]:
    """The same, writing down the rows of each step."""
    ledger, hold_at = Path(os.environ["LEDGER"]), int(os.environ.get("HOLD_AT", "0"))
    counts = ("ATTEMPT", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")

    def record(*arguments: Any) -> Iterator[Any]:
        attempt = next((os.environ[count] for count in counts if count in os.environ), "0")
        rank = os.environ.get("RANK", "0")  # of this process, which may be a fork of the one that imports
        with (ledger / f"rows-{attempt}-{rank}").open("a", encoding="utf-8") as file:
            for step, predictions in enumerate(run_pipeline(*arguments), 1):
                print(json.dumps(predictions.row.tolist()), file=file, flush=True)
                if attempt == "0" and step == hold_at:
                    (ledger / f"held-{rank}").write_text(str(os.getpid()), encoding="utf-8")
                    while not (ledger / "release").exists():
                        time.sleep(0.1)
                yield predictions

    return record


class Finder(importlib.abc.MetaPathFinder):
    """Replaces `run_pipeline` in `cetnet.trainer.train` as soon as that is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The module's, which will replace the function when it is executed."""
        if name != "cetnet.trainer.train":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_replace(module: Any) -> None:
            execute(module)
            module.run_pipeline = recorded(module.run_pipeline)

        spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


if "LEDGER" in os.environ:
    sys.meta_path.insert(0, Finder())
