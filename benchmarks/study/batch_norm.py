"""What running averages of batch normalisation cost a run's metrics: those averages against statistics taken anew.

    python -m cetnet.benchmarks.study.batch_norm data/frappe runs/embedding_scaling_frappe/ipnn/seed2 ...

For each run, NE, AUC and calibration on the test split three times: with the averages of its checkpoint, and with
mean and variance taken again over one pass of train under the final parameters, with dropout as in training and
without it, as in scoring. (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3.2.)
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from cetnet.benchmarks.command import run_command
from cetnet.trainer.check_settings import check_scored
from cetnet.trainer.checkpoint.checkpoints import load_checkpoint
from cetnet.trainer.console import output, shown
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.errors import UserError
from cetnet.trainer.evaluate import load_trained
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.scoring import score
from cetnet.trainer.session import Session, build_session, run_pipeline

BatchNorm = nn.modules.batchnorm._BatchNorm


def main(
    data: Annotated[Path, typer.Argument(help="The dataset of the runs.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
) -> None:
    """Print the test metrics of each run, with the averages of its checkpoint and with statistics taken anew.

    Example: python -m cetnet.benchmarks.study.batch_norm data/frappe runs/frappe/dcnv2/seed1
    """
    with process_group("cpu") as processes:
        for run in runs:
            test = check_scored(run, data, "test")
            config, checkpoint = load_trained(run)
            session = build_session(config, test.schema, processes)
            load_checkpoint(checkpoint, session.model)
            _print(run, "running averages", session, test, processes)
            for dropout in (True, False):
                _reestimate(session, Dataset(data, config.data.split), config.data.batch_size, dropout)
                _print(
                    run, f"taken anew, {'with' if dropout else 'without'} dropout", session, test, processes
                )


def _reestimate(session: Session, train: Dataset, batch_size: int, dropout: bool) -> None:
    """Replace the statistics of every batch normalisation by their means over the batches of train."""
    layers = [module for module in session.model.modules() if isinstance(module, BatchNorm)]
    if not layers:
        raise UserError("the model has no batch normalisation")
    session.model.eval()
    for module in session.model.modules():
        if isinstance(module, BatchNorm) or (dropout and isinstance(module, nn.Dropout)):
            module.train()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean
    with torch.no_grad():
        for _ in run_pipeline(session, Reader(train, batch_size).batches(epoch=0)):
            pass


def _print(run: Path, what: str, session: Session, test: Dataset, processes: Processes) -> None:
    scores = score(session, test, 4096, processes)
    assert scores is not None
    metrics, notes = scores.measure()
    numbers = ", ".join(
        f"{name} {shown(metrics[f'{name}/fused'], 4)}" for name in ("ne", "auc", "calibration")
    )
    output.print("; ".join([f"{run}, {what}: {numbers}", *notes]))


if __name__ == "__main__":
    run_command(main)
