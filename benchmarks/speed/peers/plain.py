"""Contender: DCNv2 in a plain PyTorch loop, `nn.Embedding` and Adam on everything, data in memory."""

from pathlib import Path

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from cetnet.benchmarks.speed.peers.columns import read_columns, side_by_side
from cetnet.benchmarks.speed.peers.dcnv2 import DIM, DenseDCNv2
from cetnet.benchmarks.speed.step_log import StepLog
from cetnet.models.schema import Schema
from cetnet.trainer.data.dataset import read_schema


class PlainDCNv2(nn.Module):
    """A table per id, and the rest: ids `[B, num_ids]` and numbers `[B, num_dense]` -> logits `[B]`."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, DIM) for rows in schema.tables.values())
        self.dense = DenseDCNv2(len(self.tables), len(schema.dense_features))

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Logits of a batch."""
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return self.dense(torch.cat(rows, dim=1), dense)


def main(data: Path, progress: Path, batch_size: int = 4096, batches: int = 200) -> None:
    """Train until killed, over and over the first batches."""
    columns = read_columns(data, batches * batch_size)
    ids, dense = torch.from_numpy(side_by_side(columns, "C")), torch.from_numpy(side_by_side(columns, "I"))
    label = torch.from_numpy(columns["label"])
    model = PlainDCNv2(read_schema(data / "schema.yaml"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    log = StepLog(progress)
    while True:
        for batch in torch.arange(len(label)).split(batch_size):
            rows = slice(int(batch[0]), int(batch[-1]) + 1)
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(ids[rows], dense[rows]), label[rows])
            loss.backward()
            optimizer.step()
            log.step()


if __name__ == "__main__":
    typer.run(main)
