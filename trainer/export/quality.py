"""What it costs to store tables in fewer bytes: NE of the same rows, before and after."""

from typing import NamedTuple

import torch

from cetnet.models.served import Served, inputs_of
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import progress_bar
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.export.quantize import Stored, store_tables
from cetnet.trainer.metrics import binary_metrics

ALLOWED = 0.02
"""Percent of NE that may be lost without a warning."""


class Quality(NamedTuple):
    """NE of a split by the first output.

    Attributes:
        data, split, rows: what was scored.
        ne_float32: with tables as they were trained.
        ne: with tables as they are stored.
    """

    data: str
    split: str
    rows: int
    ne_float32: float
    ne: float

    @property
    def worse(self) -> float:
        """How much of the NE is lost, in percent."""
        return 100 * (self.ne / self.ne_float32 - 1)

    def line(self, stored: str, size: int, size_float32: int) -> str:
        """A line for people."""
        return (
            f"  NE on {self.rows:,} rows of {self.split} of {self.data}: {self.ne:.5f} with {stored} tables, "
            f"{self.ne_float32:.5f} with float32 ({self.worse:+.4f} %); {size / size_float32:.3f} of the bytes"
        )


def measure_both(served: Served, dataset: Dataset, stored: Stored, config: RunConfig) -> Quality:
    """Score a split with the model's tables as they are, store them in that form, and score it again."""
    rows, before = _ne(served, dataset, config, "NE with float32 tables")
    store_tables(served, stored)
    _, after = _ne(served, dataset, config, f"NE with {stored} tables")
    return Quality(str(dataset.path), dataset.split, rows, before, after)


def _ne(served: Served, dataset: Dataset, config: RunConfig, what: str) -> tuple[int, float]:
    batch_size = config.evaluation.batch_size or config.data.batch_size
    reader = Reader(dataset, batch_size, order="partitioned", rank=0, world_size=1)
    parts = []
    with progress_bar() as bar, torch.inference_mode():
        task = bar.add_task(f"{what} (batches)", total=-(-dataset.num_rows // batch_size))
        for batch in reader.batches(epoch=0):
            probability = served(**inputs_of(dataset.schema, batch.sparse, batch.dense))[0]
            of_batch = torch.stack([batch.label, probability, batch.weight]).double()
            parts.append(of_batch[:, batch.row >= 0])
            bar.advance(task)
    label, probability, weight = torch.cat(parts, dim=1).numpy()
    return len(label), binary_metrics(label, probability, weight)["ne"]
