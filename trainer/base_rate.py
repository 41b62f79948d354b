"""The share of the positives, which untrained predictions start at."""

import numpy as np

from cetnet.models.cetnet import CETNet
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.processes.distributed import Processes, on_every_rank

_ROWS = 1 << 20
"""So many tell a rate of 1 % to a hundredth of itself."""


def start_at_base_rate(model: CETNet, dataset: Dataset, processes: Processes) -> None:
    """Have untrained predictions lie around the base rate, on every rank; a collective.

    Raises:
        UserError: a row group can't be read.
    """
    rate = on_every_rank(lambda: base_rate(dataset) if processes.is_main else None, processes.cpu_group)[0]
    if rate is not None:
        model.start_at(rate)


def base_rate(dataset: Dataset) -> float | None:
    """Weighted share of the positives among a million rows or more, of row groups from all over the split.

    Rows whose label or weight is bad count for nothing. None if there is one class only.

    Raises:
        UserError: a row group can't be read.
    """
    groups = dataset.row_groups
    wanted = min(len(groups), -(-_ROWS * len(groups) // dataset.num_rows))
    positive = total = 0.0
    for index in np.linspace(0, len(groups) - 1, wanted).round().astype(int):
        label, weight = dataset.label_and_weight(groups[index])
        good = np.isin(label, (0, 1)) & (weight >= 0) & np.isfinite(weight)
        positive += float(weight[good] @ label[good])
        total += float(weight[good].sum())
    return positive / total if 0 < positive < total else None
