"""Rows a second of one trained model: in the trainer's evaluation, and exported, in each of its forms.

    python -m cetnet.benchmarks.serving.rates RUN DATA EXPORT

One process on one core, one thread; the contestants take turns. All have the same rows, of the test split, in memory,
in batches as they take them: the trainer those that its reader makes, the exported model the arrays that its encoder
would make of them. So neither decoding Parquet nor looking up values counts; the trainer's evaluation with its reader
is given beside that, and the exported model with its encoder, on its examples.

Seconds are those that the core worked for this process: the clock's, where nothing else runs.
"""

import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from numpy.typing import NDArray

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.measured import spread
from cetnet.models.batch import Batch
from cetnet.models.schema import Schema
from cetnet.models.served import inputs_of
from cetnet.trainer.checkpoint.checkpoints import load_checkpoint
from cetnet.trainer.console import output
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.evaluate import load_trained
from cetnet.trainer.export.scorer import Scorer
from cetnet.trainer.export.targets import FILES
from cetnet.trainer.files import write_json
from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.session import build_session, run_pipeline

TRAINER, READING, ENCODING = "trainer's evaluation", "trainer's evaluation and its reader", "encoder and"
BATCH = 512
_BATCHES = 20

Pass = Callable[[], None]


def measure(run: Path, data: Path, export: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Rows a second of each contestant in each round, by name; what is exported by its target.

    Args:
        run: with a checkpoint.
        data: its dataset.
        export: of that checkpoint, with one target or more.
        rounds: turns of each.
        seconds: length of a turn.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    config, checkpoint = load_trained(run)
    dataset = Dataset(data, "test")
    config = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": BATCH})})
    with process_group("cpu") as processes:
        session = build_session(config, dataset.schema, processes)
        load_checkpoint(checkpoint, session.model)
        session.model.eval()

        def read() -> list[Batch]:
            reader = Reader(dataset, BATCH, order="partitioned", rank=0, world_size=1)
            return list(islice(reader.batches(epoch=0), _BATCHES))

        def evaluate(batches: list[Batch]) -> None:
            for _ in run_pipeline(session, batches):
                pass

        batches = read()
        contestants: dict[str, Pass] = {
            TRAINER: lambda: evaluate(batches),
            READING: lambda: evaluate(read()),
            **_exported(export, dataset.schema, batches),
        }
        with torch.no_grad():
            return _take_turns(contestants, BATCH * len(batches), rounds, seconds)


def _exported(export: Path, schema: Schema, batches: Sequence[Batch]) -> dict[str, Pass]:
    arrays = [served_arrays(schema, batch) for batch in batches]
    raw = _raw_rows(export)
    contestants: dict[str, Pass] = {}
    for target, file in FILES.items():
        if (export / file).exists():
            scorer = Scorer(export, target)

            def score(scorer: Scorer = scorer) -> None:
                for each in arrays:
                    scorer.run(each)

            def encode_and_score(scorer: Scorer = scorer) -> None:
                for _ in arrays:
                    scorer.score(raw)

            contestants |= {target: score, f"{ENCODING} {target}": encode_and_score}
    return contestants


def served_arrays(schema: Schema, batch: Batch) -> dict[str, NDArray]:
    """What an exported model takes, of a batch that the trainer takes."""
    return {name: tensor.numpy() for name, tensor in inputs_of(schema, batch.sparse, batch.dense).items()}


def _raw_rows(export: Path) -> pa.Table:
    """As many raw rows as a batch has: the export's examples, over and over."""
    with (export / "examples.parquet").open("rb") as file:
        examples = pq.read_table(file)
    return examples.take(np.arange(BATCH) % examples.num_rows)


def _take_turns(
    contestants: dict[str, Pass], rows: int, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Rows a second, of passes over so many rows; each contestant makes one pass before its first turn."""
    for one_pass in contestants.values():
        one_pass()
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, one_pass in contestants.items():
            start, passes = time.process_time(), 0
            while (elapsed := time.process_time() - start) < seconds:
                one_pass()
                passes += 1
            rates[name].append(passes * rows / elapsed)
    return rates


def ratios(rates: dict[str, list[float]], target: str) -> list[float]:
    """Rows a second of a target over those of the trainer's evaluation, of each round."""
    return [a / b for a, b in zip(rates[target], rates[TRAINER], strict=True)]


def main(
    run: Annotated[Path, typer.Argument(help="A run with a checkpoint.")],
    data: Annotated[Path, typer.Argument(help="Its dataset.")],
    export: Annotated[Path, typer.Argument(help="What `cetnet export` wrote of it.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 1.5,
    out: Annotated[Path | None, typer.Option(help="Write the rates of each round there, as JSON.")] = None,
) -> None:
    """Measure rows/s of a model in the trainer and as it was exported, side by side, on one core."""
    rates = measure(run, data, export, rounds, seconds)
    for name, values in rates.items():
        output.print(
            f"{name}: {spread(values, ',.0f')} rows/s, {median(ratios(rates, name)):.2f} of the first"
        )
    if out is not None:
        write_json(out, rates)


if __name__ == "__main__":
    run_command(main)
