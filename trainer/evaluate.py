"""`cetnet evaluate` and `cetnet predict`: a finished or interrupted run, applied to a split."""

from pathlib import Path

from rich.table import Table

from cetnet.trainer.checkpoint.checkpoints import latest_checkpoint, load_checkpoint, verify_checkpoint
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.checkpoint.store import checkpoint_place
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import output, shown
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import output_file
from cetnet.trainer.metrics import LABELS
from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.processes.hang_detector import LOADING
from cetnet.trainer.run_folder import load_run
from cetnet.trainer.scoring import Scores, score
from cetnet.trainer.session import build_session


def evaluate_run(run: Path, dataset: Dataset) -> None:
    """Print the metrics of every output of a run on a split that `check_scored` gave."""
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


def predict_run(run: Path, dataset: Dataset, out: Path) -> None:
    """Write the probabilities of every output of a run on a split, which `check_scored` gave, as Parquet."""
    scores = _score_run(run, dataset)
    if scores is not None:
        with output_file(out) as aside:
            scores.write(aside)
        label = dataset.schema.label
        unlabelled = "" if dataset.has(label) else f", without a label (no numeric column {label!r})"
        output.print(f"{out}: {dataset.num_rows:,} rows{unlabelled}")


def load_trained(run: Path) -> tuple[RunConfig, Place]:
    """Configuration and newest checkpoint of a run; raises UserError if there is none."""
    config, _ = load_run(run)
    checkpoint = latest_checkpoint(checkpoint_place(run, config.checkpoint.path))
    if checkpoint is None:
        raise UserError(f"{run}: no checkpoint yet; finish the run with `cetnet train ... --resume`")
    return config, checkpoint


def _score_run(run: Path, dataset: Dataset) -> Scores | None:
    config, checkpoint = load_trained(run)
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
