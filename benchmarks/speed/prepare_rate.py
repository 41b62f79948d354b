"""How fast a `cetnet prepare` command is and how much memory it takes, against plain pandas on a slice.

    python -m cetnet.benchmarks.speed.prepare_rate -- cetnet prepare csv --raw train.txt ...
    python -m cetnet.benchmarks.speed.prepare_rate --pandas-rows 1000000 -- cetnet prepare csv --raw train.txt ...

Prints the rows of the data card over the seconds, and the peak of the resident memory of all processes together,
sampled 20 times a second (pages that processes share are counted for each). The comparison needs pandas, which this
project does not install (`pip install pandas`), and one CSV file without splits: `read_csv`, `value_counts`, `map`,
`to_parquet`, in one process, as one would write it for data that fits in memory.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import psutil
import typer

from cetnet.benchmarks.command import run_command
from cetnet.trainer.console import output

PANDAS = """
import sys
from pathlib import Path
from cetnet.benchmarks.speed.prepare_rate import pandas_prepare
raw, schema, rows, out = sys.argv[1:]
pandas_prepare(Path(raw), Path(schema), int(rows), Path(out))
"""


def measure(command: Sequence[str]) -> tuple[float, int]:
    """Seconds of a command, and the peak resident bytes of its process tree; exits if the command fails."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, sum(map(_resident, [tree, *_children(tree)])))
            time.sleep(0.05)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, peak


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def pandas_prepare(raw: Path, schema: Path, rows: int, out: Path) -> None:
    """The first `rows` rows of a CSV file by the schema: vocabularies of 80 %, all encoded and written."""
    import numpy as np
    import pandas as pd

    from cetnet.trainer.prepare.engine.raw import RawSchema

    spec = RawSchema.load(schema)
    texts = {f.name: str for f in spec.features if f.kind == "categorical"}
    names = list(spec.header) if spec.header else None
    frame = pd.read_csv(
        raw, sep=spec.delimiter, names=names, header=None if names else 0, nrows=rows, dtype=texts
    )
    train = frame[: int(0.8 * len(frame))]
    for feature in spec.features:
        column = frame[feature.name]
        if feature.kind == "dense":
            frame[feature.name] = (np.sign(column) * np.log1p(column.abs())).fillna(0).astype("float32")
        else:
            counts = train[feature.name].value_counts()
            kept = sorted(counts[counts >= spec.min_count].index)
            ids = column.map(pd.Series(range(1, len(kept) + 1), index=kept))
            frame[feature.name] = ids.fillna(0).astype("int32")
    frame.to_parquet(out)


def main(
    command: Annotated[list[str], typer.Argument(help="A `cetnet prepare` command, after --.")],
    pandas_rows: Annotated[int, typer.Option(help="Rows for pandas; 0: none.")] = 0,
    pandas_schema: Annotated[
        Path | None, typer.Option(help="Raw schema for pandas; default: the command's.")
    ] = None,
) -> None:
    """Measure a preparation, and pandas on a slice of its raw file.

    Prints rows, seconds, rows/s and the most memory that all of its processes
    had together.

    Example: python -m cetnet.benchmarks.speed.prepare_rate -- cetnet prepare csv --raw train.txt ...
    """
    options = dict(pairwise(command))
    seconds, peak = measure(command)
    card = json.loads(Path(options["--out"], "card.json").read_text(encoding="utf-8"))
    _print("cetnet prepare", sum(split["rows"] for split in card["splits"].values()), seconds, peak)
    if pandas_rows:
        with tempfile.TemporaryDirectory() as folder:
            schema, out = str(pandas_schema or options["--schema"]), str(Path(folder, "out.parquet"))
            arguments = [options["--raw"], schema, str(pandas_rows), out]
            _print("pandas", pandas_rows, *measure([sys.executable, "-P", "-c", PANDAS, *arguments]))


def _print(name: str, rows: int, seconds: float, peak: int) -> None:
    output.print(
        f"{name}: {rows:,} rows in {seconds:.1f} s, {rows / seconds:,.0f} rows/s, {peak / 1e9:.2f} GB at most"
    )


if __name__ == "__main__":
    run_command(main)
