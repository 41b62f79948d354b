"""A schema of more tables than any data has, to plan: `python -m cetnet.benchmarks.growth.big_schema OUT`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cetnet.benchmarks.command import run_command
from cetnet.models.schema import Feature, Schema
from cetnet.trainer.files import check_writable
from cetnet.trainer.yaml_files import save_yaml

_SEQUENCES = 8


def big_schema(tables: int = 1000, rows: int = 10**10, exponent: float = 1.1) -> Schema:
    """`tables` tables whose sizes fall as rank^-exponent, `rows` rows in all; none has fewer than 100.

    Every tenth feature has 20 ids a row; the 2nd to 9th largest tables have a history too, of 50 events on average.

    Raises ValueError if there are too few rows for so many tables.
    """
    weights = np.arange(1, tables + 1) ** -exponent
    sizes = np.maximum(100, rows * weights / weights.sum()).astype(int)
    sizes[0] += rows - sizes.sum()
    if sizes[0] < 100:
        raise ValueError(
            f"{rows:,} rows are too few for {tables:,} tables of 100 or more; ask for more rows or fewer tables"
        )
    names = [f"t{i:04d}" for i in range(tables)]
    features = [
        Feature(name=name, kind="multi_valued", mean_length=20)
        if i % 10 == 9
        else Feature(name=name, kind="categorical")
        for i, name in enumerate(names)
    ]
    features += [
        Feature(name=f"history_{name}", kind="sequence", table=name, max_length=100, mean_length=50)
        for name in names[1 : _SEQUENCES + 1]
    ]
    features += [Feature(name=f"dense_{i}", kind="dense") for i in range(20)]
    return Schema(
        label="click", tables=dict(zip(names, map(int, sizes), strict=True)), features=tuple(features)
    )


def main(
    out: Annotated[Path, typer.Argument(help="Schema file to write.")],
    tables: Annotated[int, typer.Option(min=10, help="Number of tables.")] = 1000,
    rows: Annotated[float, typer.Option(max=1e15, help="Rows in all of them.")] = 1e10,
) -> None:
    """Write a schema of many large tables, for `cetnet plan`.

    Example: python -m cetnet.benchmarks.growth.big_schema runs/plan/schema.yaml --tables 500
    """
    try:
        check_writable(out)
        schema = big_schema(tables, int(rows))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    save_yaml(out, schema)


if __name__ == "__main__":
    run_command(main)
