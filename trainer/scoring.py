"""Score a split with a model, and measure the scores: shared by training, `cetnet evaluate` and `predict`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from cetnet.trainer.data.bad_rows import BadRow
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.given import kept_columns
from cetnet.trainer.metrics import binary_metrics, group_numbers, why_missing
from cetnet.trainer.processes.distributed import Processes
from cetnet.trainer.session import Session, run_pipeline

_PIECE_ROWS = 1 << 17


class Measured(NamedTuple):
    """Metrics of a split.

    Attributes:
        metrics: `ne/<output>`, `auc/<output>`, ... of every output, and `rows`; see `binary_metrics`.
        notes: what there is to say of them: which are undefined and why, which rows gAUC leaves out.
    """

    metrics: dict[str, float]
    notes: list[str]


def roles_of(dataset: Dataset) -> dict[str, str]:
    """Columns of predictions that are the dataset's own, and the names that it has for them, if it has."""
    schema = dataset.schema
    names = {
        "label": schema.label,
        "weight": schema.weight,
        "group": schema.group,
        "true_probability": schema.true_probability,
    }
    return {key: name for key, name in names.items() if name}


@dataclass(frozen=True)
class Scores:
    """Probabilities of a whole split, on rank 0.

    Attributes:
        probability: per output, `[n]` float64 in the order of the split's files.
        scored: `[dataset.num_rows]`, False for bad rows, which have no probability.
    """

    dataset: Dataset
    probability: dict[str, NDArray[np.float64]]
    scored: NDArray[np.bool_]

    def measure(self) -> Measured:
        """Metrics of every output. Rows whose group is null have none, and are left out of gAUC."""
        schema = self.dataset.schema
        label, weight = self.label, self.weight
        notes, group = [], None
        if schema.group:
            column = self._column(schema.group)
            missing = column.is_null().to_numpy(zero_copy_only=False)
            if pa.types.is_integer(column.type):
                group = group_numbers(column.fill_null(0).to_numpy(), missing)
            else:
                codes = column.dictionary_encode().indices
                group = group_numbers(codes.fill_null(0).to_numpy(), missing)
            if column.null_count:
                notes.append(
                    f"gAUC leaves out {column.null_count:,} rows without a group ({schema.group!r} is null)"
                )
        metrics: dict[str, float] = {"rows": len(label)}
        for output, probability in self.probability.items():
            of_output = binary_metrics(label, probability, weight, group)
            metrics |= {f"{metric}/{output}": value for metric, value in of_output.items()}
            missing_metrics = why_missing(of_output, label, probability, weight)
            if missing_metrics and missing_metrics not in notes:
                notes.append(missing_metrics)
        return Measured(metrics, notes)

    @property
    def label(self) -> NDArray[np.float64]:
        """`[n]` of the scored rows."""
        return self._numbers(self.dataset.schema.label)

    @property
    def weight(self) -> NDArray[np.float64]:
        """`[n]` of the scored rows; 1 without a column of them."""
        weight = self.dataset.schema.weight
        return self._numbers(weight) if weight else np.ones(int(self.scored.sum()))

    def write(self, path: Path, keep: Mapping[str, pa.DataType] | None = None) -> None:
        """Write Parquet: row, label, weight, group and true_probability where there are, kept columns, the outputs.

        Args:
            path: the file.
            keep: columns of the dataset's files, and their types in the output; read and written piece by piece.

        Raises:
            UserError: a value that a kept column's type can't hold.
        """
        columns: dict[str, pa.Array | NDArray] = {"row": np.flatnonzero(self.scored)}
        columns |= {
            key: self._column(name) for key, name in roles_of(self.dataset).items() if self.dataset.has(name)
        }
        if not self.dataset.schema.weight:
            columns["weight"] = np.ones(len(columns["row"]), np.float32)
        before, after = pa.table(columns), pa.table(dict(self.probability))
        schema = pa.schema([*before.schema, *(keep or {}).items(), *after.schema])
        # A file, since pyarrow takes the path a:b for the address of a store called a.
        with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for start, rows, kept in self._pieces(keep or {}):
                parts = [*before.slice(start, rows).columns, *kept, *after.slice(start, rows).columns]
                writer.write_table(pa.Table.from_arrays(parts, schema=schema))

    def _pieces(self, keep: Mapping[str, pa.DataType]) -> Iterator[tuple[int, int, list[pa.ChunkedArray]]]:
        """Of many scored rows at a time, or all if nothing is kept: those before, how many, their kept columns."""
        start, rows, tables = 0, 0, []
        groups = self.dataset.row_groups if keep else []
        for group in groups:
            wanted = pa.array(self.scored[group.first_row :][: group.num_rows])
            tables.append(kept_columns(self.dataset, group, keep).filter(wanted))
            rows += tables[-1].num_rows
            if rows >= _PIECE_ROWS or group is groups[-1]:
                yield start, rows, pa.concat_tables(tables).columns
                start, rows, tables = start + rows, 0, []
        if not keep:
            yield 0, int(self.scored.sum()), []

    def _numbers(self, name: str) -> NDArray[np.float64]:
        return self._column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)

    def _column(self, name: str) -> pa.Array:
        return self.dataset.column(name, None if self.scored.all() else self.scored)


def score(
    session: Session,
    dataset: Dataset,
    batch_size: int,
    processes: Processes,
    after_batch: Callable[[list[BadRow]], None] = lambda _: None,
) -> Scores | None:
    """Score every row of a split once, but bad rows; every rank calls it, rank 0 gets the scores.

    `batch_size` is rounded up to a multiple of the world size: the last batch is padded, nothing is lost.
    `after_batch` is called after each batch with its bad rows, on every rank the same number of times.
    """
    batch_size = -(-batch_size // processes.world_size) * processes.world_size
    reader = Reader(
        dataset,
        batch_size,
        order="partitioned",
        rank=processes.rank,
        world_size=processes.world_size,
    )
    rows, logits = [], []
    training = session.model.training
    session.model.eval()
    with torch.no_grad(), processes.hang_detector.while_doing(f"evaluating {dataset.split}"):
        for step, predictions in enumerate(run_pipeline(session, reader.batches(epoch=0))):
            rows.append(predictions.row.cpu())
            logits.append(predictions.logits.cpu())
            processes.hang_detector.progressed()
            after_batch(reader.bad_rows.pop(step, []))
    session.model.train(training)
    row, logit = torch.cat(rows), torch.cat(logits, 1)
    all_rows = [torch.empty_like(row) for _ in range(processes.world_size)] if processes.is_main else None
    all_logits = [torch.empty_like(logit) for _ in range(processes.world_size)] if processes.is_main else None
    dist.gather(row, all_rows, group=processes.cpu_group)
    dist.gather(logit, all_logits, group=processes.cpu_group)
    if all_rows is None or all_logits is None:
        return None
    row, logit = torch.cat(all_rows), torch.cat(all_logits, 1)
    ordered = torch.empty(logit.shape[0], dataset.num_rows, dtype=torch.float64)
    ordered[:, row[row >= 0]] = logit[:, row >= 0].double().sigmoid()
    scored = torch.zeros(dataset.num_rows, dtype=torch.bool)
    scored[row[row >= 0]] = True
    if not scored.all():
        ordered = ordered[:, scored]
    return Scores(dataset, dict(zip(session.outputs, ordered.numpy(), strict=True)), scored.numpy())
