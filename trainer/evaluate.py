"""`cetnet evaluate` and `cetnet predict`: a finished or interrupted run, applied to a split."""

from pathlib import Path

from rich.table import Table

from cetnet.models.schema import Schema
from cetnet.trainer.checkpoint.checkpoints import latest_checkpoint, load_checkpoint, verify_checkpoint
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.checkpoint.store import checkpoint_place
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import output
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.processes.hang_detector import LOADING
from cetnet.trainer.run_folder import load_run
from cetnet.trainer.scoring import Scores, score
from cetnet.trainer.session import build_session

METRICS = {"ne": "NE", "auc": "AUC", "gauc": "gAUC", "logloss": "LogLoss", "calibration": "calibration"}


def evaluate_run(run: Path, data: Path, split: str) -> None:
    """Print the metrics of every output of a run on a split."""
    scores = _score_run(run, data, split)
    if scores is None:
        return
    metrics = scores.metrics()
    table = Table(title=f"{run} on {split} of {data}: {metrics['rows']:,} rows", title_justify="left")
    table.add_column("output")
    shown = {key: name for key, name in METRICS.items() if f"{key}/fused" in metrics}
    for name in shown.values():
        table.add_column(name, justify="right")
    for name in scores.probability:
        table.add_row(name, *(f"{metrics[f'{key}/{name}']:.5f}" for key in shown))
    output.print(table)


def predict_run(run: Path, data: Path, split: str, out: Path) -> None:
    """Write the probabilities of every output of a run on a split as Parquet."""
    if out.is_dir():
        raise UserError(f"{out} is a directory; name the Parquet file to write")
    scores = _score_run(run, data, split)
    if scores is not None:
        scores.write(out)
        output.print(f"{out}: {scores.dataset.num_rows:,} rows", highlight=False)


def check_scoring(run: Path, data: Path, split: str) -> tuple[RunConfig, Dataset, Place]:
    """Configuration and newest checkpoint of a run, and the split to score; raises UserError."""
    config, schema = load_run(run)
    dataset = Dataset(data, split)
    _check_same(schema, dataset.schema, data)
    checkpoint = latest_checkpoint(checkpoint_place(run, config.checkpoint.path))
    if checkpoint is None:
        raise UserError(f"{run}: no checkpoint yet; finish the run with `cetnet train ... --resume`")
    return config, dataset, checkpoint


def _score_run(run: Path, data: Path, split: str) -> Scores | None:
    config, dataset, checkpoint = check_scoring(run, data, split)
    training = config.training.model_copy(update={"compile": False})  # it would take longer than it saves
    config = config.model_copy(update={"training": training})
    # On whatever there is here: a model trained on GPUs can be scored without one.
    with process_group("auto", config.training.timeout_minutes) as processes:
        session = build_session(config, dataset.schema, processes)
        with processes.hang_detector.while_doing(LOADING):
            verify_checkpoint(checkpoint)
            load_checkpoint(checkpoint, session.model)
        batch_size = config.evaluation.batch_size or config.data.batch_size
        return score(session, dataset, batch_size, processes)


def _check_same(run: Schema, data: Schema, path: Path) -> None:
    """The data must mean the same to the model: equal features and tables."""
    inputs = {feature.name: (feature.kind, feature.table, feature.max_length) for feature in run.features}
    others = {feature.name: (feature.kind, feature.table, feature.max_length) for feature in data.features}
    for name in {**inputs, **others}:
        if inputs.get(name) != others.get(name):
            raise UserError(
                f"{path}: feature {name!r} is not as in the run; score data of the run's own schema"
            )
    if list(inputs) != list(others):
        raise UserError(f"{path}: the features are in another order than in the run; use its schema.yaml")
    if run.tables != data.tables:
        table = next(t for t in {**run.tables, **data.tables} if run.tables.get(t) != data.tables.get(t))
        raise UserError(
            f"{path}: table {table!r} has other rows than in the run; use the run's own vocabulary"
        )
    if different := set(run.id_ranges.items()) ^ set(data.id_ranges.items()):
        table = min(different)[0]
        raise UserError(
            f"{path}: table {table!r} is not hashed as in the run; use the run's schema.yaml, and raw ids if it is"
        )
