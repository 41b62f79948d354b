"""Where the time of a training step goes: a table by phase, a flame graph, and on a GPU what it leaves unused.

    make data/demo/schema.yaml
    python -m cetnet.benchmarks.speed.breakdown configs/demo.yaml --out runs/breakdown

The steps are the trainer's own, with its reader, NE and check for numerical faults, under PyTorch's profiler, which
itself takes some percent. Seconds are of the thread that trains, a phase without those inside it that have a row of
their own. On a GPU those are the seconds of launching, and a second column has the GPU's own.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.speed.breakdown.flame_graph import draw, flame
from cetnet.benchmarks.speed.breakdown.gpu import gpu_use
from cetnet.benchmarks.speed.breakdown.phases import DATA, METRICS, OTHER, STEP, phases
from cetnet.models.batch import Batch
from cetnet.models.schema import Schema
from cetnet.trainer.config import load_config
from cetnet.trainer.console import console, output
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import write_json
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.progressive_ne import ProgressiveNE
from cetnet.trainer.session import Session, build_session, run_pipeline


def main(
    config: Annotated[Path, typer.Argument(help="Experiment file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as for `cetnet train`.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for breakdown.json, flame.svg and trace.json.gz.")] = Path(
        "runs/breakdown"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps that are profiled.")] = 20,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before them.")] = 10,
    threads: Annotated[int | None, typer.Option(help="Threads; default: PyTorch's.")] = None,
) -> None:
    """Profile some training steps of an experiment, in one process.

    Prints a table of the step's phases; on a GPU also how near the matrix
    products and lookups come to its limits. flame.svg shows what is inside
    the phases, trace.json.gz every call (ui.perfetto.dev).

    Example: python -m cetnet.benchmarks.speed.breakdown configs/demo.yaml training.precision=bf16
    """
    if threads:
        torch.set_num_threads(threads)
    settings = load_config(config, overrides)
    with process_group(settings.training.device) as processes:
        data = settings.data
        dataset = Dataset(data.path, data.split)
        session = build_session(settings, dataset.schema, processes)
        reader = Reader.of(data, dataset)
        count = min(warmup + steps, reader.steps_per_epoch)
        if count <= warmup:
            raise UserError(
                f"{data.path} has {count} steps of {data.batch_size} rows, --warmup {warmup} takes them all"
            )
        example = next(reader.batches(0)).to(processes.device)
        flops = count_flops(session, example, processes)
        looked_up = bytes_looked_up(session, dataset.schema, example)
        profiler = profiled_steps(session, reader, processes, warmup, count)
    events = profiler.events()
    num_steps = count - warmup
    result = {
        "steps": num_steps,
        "batch_size": data.batch_size,
        "milliseconds": phases(events, num_steps),
        "dense_gflop": flops / 1e9,
    }
    if processes.device.type == "cuda":
        result["gpu"] = gpu_use(events, num_steps, flops, looked_up)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "breakdown.json", result)
    title = f"{config.stem} {' '.join(overrides or [])}: a step of {data.batch_size:,} rows"
    draw(flame(events), title, num_steps).savefig(out / "flame.svg")
    profiler.export_chrome_trace(str(out / "trace.json.gz"))
    output.print(as_table(result, title))
    console.print(f"{out}/flame.svg; trace.json.gz is for ui.perfetto.dev")


def profiled_steps(session: Session, reader: Reader, processes: Processes, warmup: int, count: int) -> Any:
    """Train `count` steps, all but the first `warmup` of them under the profiler, which is returned."""
    session.model.train()
    ne = ProgressiveNE(session.outputs, 100, processes.device)
    batches = labelled(reader.batches(0, 0, count))
    cuda = [ProfilerActivity.CUDA] if processes.device.type == "cuda" else []
    profiler = profile(activities=[ProfilerActivity.CPU, *cuda])
    trained = run_pipeline(session, batches)
    for step in range(count):
        if step == warmup:
            _wait(processes)
            profiler.start()
        with record_function(STEP):
            predictions = next(trained)
            with record_function(METRICS):
                assert session.guard.fault(processes.cpu_group) is None
                ne.update(predictions.logits, predictions.label, predictions.weight)
    _wait(processes)
    profiler.stop()
    return profiler


def labelled(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; waiting for one has a name in the profile."""
    iterator = iter(batches)
    while True:
        with record_function(DATA):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def count_flops(session: Session, batch: Batch, processes: Processes) -> int:
    """Floating-point operations of the matrix products of a step, forward and backward; the tables learn from it."""
    session.model.train()
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        loss, _ = session.model(batch)
        loss.backward()
    session.optimizer.zero_grad()
    session.guard.fault(processes.cpu_group)  # so that it forgets the step
    return int(counter.get_total_flops())


def bytes_looked_up(session: Session, schema: Schema, batch: Batch) -> int:
    """Bytes of the rows that a batch looks up in the sharded tables, as often as it does, in float32."""
    total = 0
    for table in session.plan.placements:
        _, name, *extra = table.table.split("__")
        features = [f.name for f in schema.id_features if (f.name if extra else f.table) == name]
        total += sum(batch.sparse[feature].values().numel() for feature in features) * table.dim * 4
    return total


def _wait(processes: Processes) -> None:
    if processes.device.type == "cuda":
        torch.cuda.synchronize()


def as_table(result: dict[str, Any], title: str) -> Table:
    """Milliseconds and shares by phase."""
    rows = result["milliseconds"]
    table = Table("", title=title)
    places = ["host", *(["device"] if "gpu" in result else [])]
    for place in places:
        table.add_column(f"{place}, ms", justify="right")
        table.add_column("share", justify="right")
    totals = {place: sum(row[place] for row in rows.values()) for place in places}
    for name, row in [*rows.items(), ("step", totals)]:
        cells = [(f"{row[p]:.2f}", f"{row[p] / totals[p]:.0%}" if totals[p] else "") for p in places]
        table.add_row(name, *(cell for pair in cells for cell in pair), end_section=name == OTHER)
    table.caption = f"{result['dense_gflop']:.2f} GFLOP in matrix products"
    if gpu := result.get("gpu"):
        table.caption += (
            f"; GPU busy {gpu['busy']:.0%} of {gpu['milliseconds']:.2f} ms a step; products at "
            f"{gpu['products_tflops']:.1f} TFLOP/s of {gpu['peak_tflops_bf16']:.0f} (bf16), "
            f"{gpu['peak_tflops_fp32']:.0f} (fp32); lookups at {gpu['lookup_gb_per_second']:.0f} GB/s, updates at "
            f"{gpu['update_gb_per_second']:.0f}, copies at {gpu['copy_gb_per_second']:.0f} GB/s"
        )
    return table


if __name__ == "__main__":
    run_command(main)
