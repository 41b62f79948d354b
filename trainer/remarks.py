"""What a run says of its metrics and of its rows."""

from cetnet.trainer.console import shown
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.metrics import LABELS


def describe(metrics: dict[str, float]) -> str:
    """The fused output's metrics in a line."""
    parts = [
        f"{label} {shown(metrics[f'{key}/fused'])}"
        for key, label in LABELS.items()
        if f"{key}/fused" in metrics
    ]
    return f"{metrics['rows']:,} rows, " + ", ".join(parts)


def nothing_learned(dataset: Dataset, why: str) -> str:
    """What is said of rows that can't teach a model anything."""
    columns = ", ".join(repr(name) for name in (dataset.schema.label, dataset.schema.weight) if name)
    return (
        f"WARNING: {dataset.path / dataset.split}: {why}, so NE is undefined and nothing is learned but that; "
        f"look at column {columns}"
    )
