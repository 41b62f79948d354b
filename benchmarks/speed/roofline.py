"""The machine's own limits: matrix products, memory bandwidth, random reads; as a report, or as a contender.

    python -m cetnet.benchmarks.speed.roofline report
    python -m cetnet.benchmarks.speed.roofline multiply PROGRESS --bf16

As a contender it multiplies large matrices: a step is as much arithmetic as a step of DCNv2 (`dcnv2.py`), so that its
rows a second bound those of any trainer of that model, at the clock rate and temperature the machine has just then.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from cetnet.benchmarks.speed.data import NUM_DENSE, NUM_IDS
from cetnet.benchmarks.speed.peers.dcnv2 import DIM, HIDDEN, flops_per_sample
from cetnet.benchmarks.speed.step_log import StepLog

SQUARE = 2048
SQUARE_FLOPS = 2 * SQUARE**3
REPETITIONS = 5
TABLE_ROWS = 21_600_000
COPIED = 1 << 28  # bytes, many times the caches

app = typer.Typer(
    add_completion=False,
    help="The machine's own limits: matrix products, memory bandwidth, random reads; as a report, or as a contender.",
)


def _best_seconds(action: Callable[[], object]) -> float:
    """The shortest of some calls, after one that doesn't count."""
    action()
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def product_rate(dtype: torch.dtype, rows: int, columns: int, outputs: int) -> float:
    """FLOP/s of `[rows, columns] @ [columns, outputs]`, at best."""
    left, right = torch.randn(rows, columns).to(dtype), torch.randn(columns, outputs).to(dtype)
    out = torch.empty(rows, outputs, dtype=dtype)
    repeat = max(1, SQUARE_FLOPS // (2 * rows * columns * outputs))

    def multiply() -> None:
        for _ in range(repeat):
            torch.mm(left, right, out=out)

    return repeat * 2 * rows * columns * outputs / _best_seconds(multiply)


def measure(batch_size: int = 4096) -> dict[str, float]:
    """FLOP/s by shape and precision, bytes/s of a triad, rows/s of random reads; what a row of DCNv2 needs."""
    width = (NUM_IDS + NUM_DENSE) * DIM
    shapes = {
        f"square {SQUARE}": (SQUARE, SQUARE, SQUARE),
        f"cross {batch_size}x{width}x{width}": (batch_size, width, width),
        f"cross, weight's gradient {width}x{batch_size}x{width}": (width, batch_size, width),
        f"first layer {batch_size}x{width}x{HIDDEN[0]}": (batch_size, width, HIDDEN[0]),
        f"hidden layer {batch_size}x{HIDDEN[0]}x{HIDDEN[1]}": (batch_size, HIDDEN[0], HIDDEN[1]),
    }
    result: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for shape, sizes in shapes.items():
            result[f"GFLOP/s {name}, {shape}"] = product_rate(dtype, *sizes) / 1e9
    a, b, c = (torch.ones(COPIED // 4) for _ in range(3))
    result["GB/s, triad a = b + 2 c"] = (
        3 * COPIED / _best_seconds(lambda: torch.add(b, c, alpha=2, out=a)) / 1e9
    )
    table = torch.zeros(TABLE_ROWS, DIM)
    table.fill_(1)  # pages of its own, not the one of zeros
    ids = torch.randint(TABLE_ROWS, (1 << 20,))
    out = torch.empty(len(ids), DIM)
    seconds = _best_seconds(lambda: torch.index_select(table, 0, ids, out=out))
    result[f"M rows/s of {DIM * 4} bytes, random reads of {TABLE_ROWS / 1e6:.1f} M rows"] = (
        len(ids) / seconds / 1e6
    )
    result["MFLOP per row of DCNv2, forward and backward"] = flops_per_sample(NUM_IDS, NUM_DENSE) / 1e6
    return result


def bounds(measured: dict[str, float]) -> dict[str, float]:
    """Rows/s that the machine's limits leave DCNv2, by precision and limit.

    Arithmetic: at the fastest rate of any shape. Rows of tables: each is read, and read and written by its optimizer.
    """
    flops = measured["MFLOP per row of DCNv2, forward and backward"] * 1e6
    reads = next(value for key, value in measured.items() if key.startswith("M rows/s"))
    result = {"random reads": reads * 1e6 / (3 * NUM_IDS)}
    for name in ("fp32", "bf16"):
        best = max(value for key, value in measured.items() if key.startswith(f"GFLOP/s {name}"))
        result[f"{name} products"] = best * 1e9 / flops
    return result


@app.command()
def report() -> None:
    """Print what was measured, as JSON; in less than a minute."""
    print(json.dumps(measure()))


@app.command()
def multiply(
    progress: Path,
    batch_size: int = 4096,
    bf16: Annotated[bool, typer.Option("--bf16", help="In bfloat16.")] = False,
) -> None:
    """Multiply until killed."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(SQUARE, SQUARE).to(dtype) for _ in range(2))
    out = torch.empty(SQUARE, SQUARE, dtype=dtype)
    needed, done, log = batch_size * flops_per_sample(NUM_IDS, NUM_DENSE), 0.0, StepLog(progress)
    while True:
        torch.mm(left, right, out=out)
        done += SQUARE_FLOPS
        while done >= needed:
            done -= needed
            log.step()


if __name__ == "__main__":
    app()
