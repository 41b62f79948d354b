"""How fast the reader is and how much memory it takes, against pyarrow's own decoding of the same columns.

    python -m cetnet.benchmarks.speed.reader_rate --out runs/reader_rate.json

Two datasets of random rows, as `cetnet prepare` writes them: Criteo's columns (26 ids, 13 numbers), and TaobaoAd's
(16 ids, a number, a history of about 45 events of three ids). Their rows are whole row groups for each of 16 lanes: a
row group that two lanes share is decoded twice, which is 1% of a log of Criteo's size, but much of a small one.

One thread each: a process that may use one core only reads all rows, in all ways by turns. pyarrow reads row group by
row group without threads and drops the tables; the reader makes batches of 4096 that nobody trains on, and checks the
pages' checksums and every value besides. Threads: the reader in `shuffled` order on all cores. The first batch waits
for `data.shuffle_rows` rows of each lane.

Memory: by how much an epoch grows the process at most, and how much of that the reader's arrays may be: two chunks of
each lane (`data.lanes`; a chunk is `data.shuffle_rows` and less than a row group more), two more for each of
`data.threads` while they are put in order, and `data.prefetch` batches and two.
"""

import multiprocessing
import os
import resource
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import psutil
import pyarrow.parquet as pq
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.measured import spread
from cetnet.models.batch import Batch
from cetnet.trainer.console import console, output, quieten
from cetnet.trainer.data.dataset import Dataset, Piece
from cetnet.trainer.data.reader import Order, Reader
from cetnet.trainer.files import write_json
from cetnet.trainer.prepare.engine.part_files import ROW_GROUP_ROWS
from cetnet.trainer.prepare.sources.random import prepare_random
from cetnet.trainer.processes.malloc import keep_freed_memory

DATASETS = {"criteo": ("criteo_x1", 4), "taobao_ad": ("taobao_ad", 2)}  # schema, row groups of a lane
BATCH_SIZE, LANES, PREFETCH = 4096, 16, 4
THREADS = (1, 2)
ORDERS: tuple[Order, ...] = ("shuffled", "sequential", "partitioned")


def measure(name: str, data: Path, rounds: int = 5) -> dict[str, Any]:
    """Measure with one of DATASETS, in new processes; it is made in the folder `data` unless it is there.

    Args:
        name: of the dataset.
        data: the folder.
        rounds: how often all ways of reading take turns.

    Returns:
        `rows`; `wall` and `cpu`, per way of reading its rows per second, and per CPU second, of every round;
        `threads`, by their number rows per second and seconds to the first batch; `memory`, by `shuffle_rows`
        what the reader's arrays may take, and what the process grew by (bytes).
    """
    schema, groups = DATASETS[name]
    rows, path = groups * LANES * ROW_GROUP_ROWS, data / name
    if not path.exists():
        prepare_random(Path(__file__).parents[1] / f"studies/schemas/{schema}.yaml", rows * 10 // 8, path)
    console.print(f"{name}: {rows:,} rows, {rounds} rounds")
    rates = _in_new_process(_rates, path, rounds)
    threads = _in_new_process(_threads, path, rounds)
    memory = {size: _in_new_process(_memory, path, size) for size in (ROW_GROUP_ROWS, 4 * ROW_GROUP_ROWS)}
    return {"rows": rows, **rates, "threads": threads, "memory": memory}


def _in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(quieten)
        process.submit(keep_freed_memory)  # as the trainer does
        return process.submit(function, *arguments).result()


def _rates(path: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    dataset = Dataset(path, "train")

    def read(order: Order) -> None:
        for _ in _reader(dataset, order).batches(0):
            pass

    ways: dict[str, Callable[[], None]] = {
        "pyarrow": lambda: decode(dataset, checksums=True),
        "pyarrow without checksums": lambda: decode(dataset, checksums=False),
        **{f"reader, {order}": lambda order=order: read(order) for order in ORDERS},  # type: ignore[misc]
    }
    wall: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():  # files come into the page cache, libraries start
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            way()
            cpu[name].append(dataset.num_rows / (time.process_time() - cpu_start))
            wall[name].append(dataset.num_rows / (time.perf_counter() - start))
    return {"wall": wall, "cpu": cpu}


def decode(dataset: Dataset, checksums: bool) -> None:
    """Have pyarrow decode what the reader reads: all columns of the schema, row group by row group."""
    schema = dataset.schema
    names = [schema.label, *(feature.name for feature in schema.features)]
    for path in sorted({group.file for group in dataset.row_groups}):
        with pq.ParquetFile(path, page_checksum_verification=checksums) as file:
            for index in range(file.num_row_groups):
                file.read_row_group(index, columns=names, use_threads=False)


def _threads(path: Path, rounds: int) -> dict[int, dict[str, list[float]]]:
    torch.set_num_threads(1)
    dataset = Dataset(path, "train")
    found: dict[int, dict[str, list[float]]] = {
        threads: {"rows_per_second": [], "first_batch": []} for threads in THREADS
    }
    for _ in range(rounds):
        for threads, times in found.items():
            start = time.perf_counter()
            batches = _reader(dataset, threads=threads).batches(0)
            next(batches)
            times["first_batch"].append(time.perf_counter() - start)
            for _ in batches:
                pass
            times["rows_per_second"].append(dataset.num_rows / (time.perf_counter() - start))
    return found


def _memory(path: Path, shuffle_rows: int) -> dict[str, float]:
    torch.set_num_threads(1)
    dataset = Dataset(path, "train")
    before = psutil.Process().memory_info().rss
    (batch,) = deque(_reader(dataset, shuffle_rows=shuffle_rows).batches(0), maxlen=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lane, chunk = dataset.num_rows // LANES, shuffle_rows + ROW_GROUP_ROWS
    rows = LANES * min(2 * chunk, lane) + 2 * min(chunk, lane)
    return {
        "arrays": rows * _row_bytes(dataset) + (PREFETCH + 2) * _batch_bytes(batch),
        "grown": peak - before,
    }


def _row_bytes(dataset: Dataset) -> float:
    group = dataset.row_groups[0]
    rows = dataset.read([Piece(group, 0, group.num_rows)])
    arrays: list[NDArray] = [rows.row, rows.numbers, rows.ids]
    arrays += [array for lists in rows.lists for array in (lists.ids, lists.offsets)]
    return sum(array.nbytes for array in arrays) / group.num_rows


def _batch_bytes(batch: Batch) -> int:
    sparse = (batch.sparse.values(), batch.sparse.lengths())
    return sum(tensor.nbytes for tensor in (*sparse, batch.dense, batch.label, batch.weight, batch.row))


def _reader(
    dataset: Dataset, order: Order = "shuffled", threads: int = 1, shuffle_rows: int = 4 * ROW_GROUP_ROWS
) -> Reader:
    return Reader(
        dataset,
        BATCH_SIZE,
        order=order,
        lanes=LANES,
        shuffle_rows=shuffle_rows,
        prefetch=PREFETCH,
        threads=threads,
    )


def main(
    data: Annotated[
        Path, typer.Option(help="Folder of the datasets, which are made if they are missing.")
    ] = Path("data/reader_rate"),
    rounds: Annotated[int, typer.Option(min=1, help="How often all ways take turns.")] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON file for every round's figures.")] = None,
) -> None:
    """Measure the reader's rows per second and memory, against pyarrow's decoding of the same columns.

    Tables of medians, in brackets the least and the most of the rounds. The
    share is of what pyarrow decodes in a CPU second with checksums checked.

    Example: python -m cetnet.benchmarks.speed.reader_rate --out runs/reader_rate.json
    """
    result = {}
    for name in DATASETS:
        result[name] = found = measure(name, data, rounds)
        output.print(_rates_table(name, found))
        for threads, times in found["threads"].items():
            output.print(
                f"data.threads={threads}, all cores: {spread(times['rows_per_second'], ',.0f')} rows/s, "
                f"first batch after {spread(times['first_batch'], '.2f')} s"
            )
        for size, memory in found["memory"].items():
            output.print(
                f"data.shuffle_rows={size}: memory grew by {memory['grown'] / 1e6:,.0f} MB, "
                f"arrays may take {memory['arrays'] / 1e6:,.0f} MB"
            )
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)


def _rates_table(name: str, found: dict[str, Any]) -> Table:
    table = Table("way", title=f"{name}: {found['rows']:,} rows, one core")
    for column in ("rows/s", "rows per CPU second", "of pyarrow"):
        table.add_column(column, justify="right")
    for way, cpu in found["cpu"].items():
        shares = [rate / other for rate, other in zip(cpu, found["cpu"]["pyarrow"], strict=True)]
        table.add_row(way, spread(found["wall"][way], ",.0f"), spread(cpu, ",.0f"), spread(shares, ".2f"))
    return table


if __name__ == "__main__":
    run_command(main)
