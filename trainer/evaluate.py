"""`cetnet evaluate` and `cetnet predict`: a finished or interrupted run, applied to a split or to raw rows."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch.distributed as dist
from rich.table import Table

from cetnet.models.schema import Schema
from cetnet.trainer.checkpoint.checkpoints import (
    latest_checkpoint,
    load_checkpoint,
    read_trainer_state,
    verify_checkpoint,
)
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.checkpoint.store import checkpoint_place
from cetnet.trainer.checkpoint.trainer_state import check_own_meaning
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import console, output, progress_bar, shown
from cetnet.trainer.data.bad_rows import BadRow
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import output_file, without_nonfinite, write_json
from cetnet.trainer.metrics import LABELS
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.processes.hang_detector import LOADING
from cetnet.trainer.run_folder import load_run
from cetnet.trainer.scoring import Scores, score
from cetnet.trainer.session import Session, build_session
from cetnet.trainer.slices import Slice, note_on, slices_of


def evaluate_run(run: Path, dataset: Dataset, by: Sequence[str] = (), json: Path | None = None) -> None:
    """Print the metrics of every output of a run on rows that were checked, and of slices of them.

    Args:
        run: folder of the run.
        dataset: the rows.
        by: columns of its files, for a table each of the fused output's metrics by value.
        json: file to write all of it to.
    """
    scores = _score_run(run, dataset)
    if scores is None:
        return
    metrics, notes = scores.measure()
    table = Table(
        title=f"{run} on {dataset.split} of {dataset.path}: {metrics['rows']:,} rows", title_justify="left"
    )
    table.add_column("output")
    titles = {key: name for key, name in LABELS.items() if f"{key}/fused" in metrics}
    for name in titles.values():
        table.add_column(name, justify="right")
    for name in scores.probability:
        table.add_row(name, *(shown(metrics[f"{key}/{name}"]) for key in titles))
    output.print(table)
    for note in notes:
        output.print(f"{dataset.split}: {note}")
    first, probability = next(iter(scores.probability.items()))
    slices = {
        column: slices_of(dataset, column, scores.scored, scores.label, scores.weight, probability, run)
        for column in by
    }
    for column, of_column in slices.items():
        output.print(_slice_table(f"{first}, by {column}", column, of_column))
        if undefined := note_on(of_column):
            output.print(undefined)
    if json is not None:
        content = {"run": str(run), "data": str(dataset.path), "split": dataset.split, "notes": notes}
        by_column = {column: [_as_json(each) for each in of_column] for column, of_column in slices.items()}
        with output_file(json) as aside:
            write_json(aside, content | {"metrics": without_nonfinite(metrics), "by": by_column})
        output.print(f"{json}: the same for machines")


def _slice_table(title: str, column: str, slices: Sequence[Slice]) -> Table:
    titles = {key: name for key, name in LABELS.items() if key != "gauc"}
    table = Table(title=title, title_justify="left")
    table.add_column(column)
    for name in ("rows", "positive rate", *titles.values()):
        table.add_column(name, justify="right")
    for value, rows, positive_rate, metrics in slices:
        table.add_row(value, f"{rows:,}", shown(positive_rate), *(shown(metrics[key]) for key in titles))
    return table


def _as_json(of_value: Slice) -> dict[str, Any]:
    value, rows, positive_rate, metrics = of_value
    numbers = without_nonfinite({"positive_rate": positive_rate, **metrics})
    return {"value": value, "rows": rows} | numbers


def predict_run(
    run: Path, dataset: Dataset, out: Path, keep: Mapping[str, pa.DataType] | None = None
) -> None:
    """Write the probabilities of every output of a run on rows that were checked, and columns to keep, as Parquet."""
    scores = _score_run(run, dataset)
    if scores is not None:
        with output_file(out) as aside:
            scores.write(aside, keep)
        label = dataset.schema.label
        unlabelled = "" if dataset.has(label) else f", without a label (no numeric column {label!r})"
        output.print(f"{out}: {dataset.num_rows:,} rows{unlabelled}")


def load_trained(run: Path) -> tuple[RunConfig, Place]:
    """Configuration and newest checkpoint of a run; raises UserError if there is none."""
    config, schema = load_run(run)
    checkpoint = latest_checkpoint(checkpoint_place(run, config.checkpoint.path))
    if checkpoint is None:
        raise UserError(f"{run}: no checkpoint yet; finish the run with `cetnet train ... --resume`")
    check_own_meaning(run, schema, read_trainer_state(checkpoint))
    return config, checkpoint


class Trained(NamedTuple):
    """A run's model on these processes, as its newest checkpoint has it."""

    config: RunConfig
    checkpoint: Place
    session: Session
    processes: Processes

    @property
    def batch_size(self) -> int:
        """Rows of an evaluation's step."""
        return self.config.evaluation.batch_size or self.config.data.batch_size


@contextmanager
def trained_session(run: Path, schema: Schema) -> Iterator[Trained]:
    """The model of a run, on whatever there is here: one trained on GPUs can be scored with without one."""
    config, checkpoint = load_trained(run)
    with process_group("auto", config.training.timeout_minutes) as processes:
        session = load_session(config, checkpoint, schema, processes)
        yield Trained(config, checkpoint, session, processes)


def load_session(config: RunConfig, checkpoint: Place, schema: Schema, processes: Processes) -> Session:
    """The model of a checkpoint on these processes, to score with; every rank calls it."""
    training = config.training.model_copy(update={"compile": False})  # it would take longer than it saves
    session = build_session(config.model_copy(update={"training": training}), schema, processes)
    with processes.hang_detector.while_doing(LOADING):
        verify_checkpoint(checkpoint)
        load_checkpoint(checkpoint, session.model)
    return session


def _score_run(run: Path, dataset: Dataset) -> Scores | None:
    with trained_session(run, dataset.schema) as trained:
        scores = score_with_progress(trained.session, dataset, trained.batch_size, trained.processes)
        _warn_of_new_values(dataset, trained.processes)
        return scores


def score_with_progress(
    session: Session, dataset: Dataset, batch_size: int, processes: Processes
) -> Scores | None:
    """`score`, with a bar and the rate in the end."""
    if not processes.is_main:
        return score(session, dataset, batch_size, processes)
    start = time.monotonic()
    with progress_bar() as progress:
        task = progress.add_task("scoring (rows)", total=dataset.num_rows)

        def advance(_: list[BadRow]) -> None:
            progress.advance(task, batch_size)

        scores = score(session, dataset, batch_size, processes, advance)
    seconds = time.monotonic() - start
    rate = f"{dataset.num_rows / seconds:,.0f} rows/s on {processes.world_size} processes"
    console.print(f"scored {dataset.num_rows:,} rows in {seconds:.1f} s: {rate}")
    return scores


def _warn_of_new_values(dataset: Dataset, processes: Processes) -> None:
    """Say, of raw rows, in which columns most is new to the model: rows written otherwise than in training are."""
    if (raw := dataset.raw) is None:
        return
    encoded: list[Any] | None = [None] * processes.world_size if processes.is_main else None
    dist.gather_object(dict(raw.unknown), encoded, group=processes.cpu_group)
    if encoded is not None and (drift := raw.drift(encoded)):
        console.print(f"warning: {drift}")
