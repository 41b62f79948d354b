"""Contender: our evaluation, over and over a split: reader, tables and model; not the metrics at its end."""

from pathlib import Path
from typing import Annotated

import typer

from cetnet.benchmarks.speed.step_log import StepLog
from cetnet.trainer.config import load_config
from cetnet.trainer.console import quieten
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.scoring import score
from cetnet.trainer.session import build_session


def main(
    config: Path,
    progress: Path,
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    split: str = "train",
) -> None:
    """Score until killed."""
    quieten()
    settings = load_config(config, overrides)
    dataset = Dataset(settings.data.path, split)
    log = StepLog(progress)
    with process_group(settings.training.device) as processes:
        session = build_session(settings, dataset.schema, processes)
        while True:
            score(session, dataset, settings.data.batch_size, processes, lambda _: log.step())


if __name__ == "__main__":
    typer.run(main)
