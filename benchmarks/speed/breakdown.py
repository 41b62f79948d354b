"""Where the time of a training step goes: a table by phase, a flame graph, and on a GPU what it leaves unused.

    make data/demo/schema.yaml
    python -m cetnet.benchmarks.speed.breakdown configs/demo.yaml --out runs/breakdown

The steps are the trainer's own, with its reader, NE and check for numerical faults, under PyTorch's profiler, which
itself takes some percent. Seconds are of the thread that trains, a phase without those inside it that have a row of
their own. On a GPU those are the seconds of launching, and a second column has the GPU's own.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from cetnet.models.batch import Batch
from cetnet.models.schema import Schema
from cetnet.trainer.config import load_config
from cetnet.trainer.console import console, output, quieten
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.errors import UserError
from cetnet.trainer.plot_style import COLORS
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.progressive_ne import ProgressiveNE
from cetnet.trainer.scoring import run_pipeline
from cetnet.trainer.session import Session, build_session

STEP, DATA, METRICS = "## step ##", "## wait for data ##", "## metrics ##"
PHASES = {
    "wait for data": re.escape(DATA),
    "input distribution": r"## (start|wait)_sparse_data_dist|## (inplace_)?copy_batch_to_gpu",
    "lookup": r"\[lookup\]|\[output_dist\]|fbgemm::split_embedding_.*forward|fbgemm::split_embedding_\w*lookup",
    "tables' update": r"split_embedding_(\w+_)?backward|SplitLookupFunction.*Backward",
    "dense forward": r"## forward",
    "dense backward": r"## backward",
    "optimizer": r"## optimizer|## zero_grad",
    "metrics": re.escape(METRICS),
}
"""Regions by phase; what is inside a region belongs to it unless it has a phase of its own."""
OTHER = "other"
SMALLEST = 0.004  # of the whole: what is narrower isn't drawn


@dataclass
class Frame:
    """A box of the flame graph: microseconds of all its calls, and the boxes on top of it."""

    name: str
    phase: str
    microseconds: float = 0.0
    above: dict[str, "Frame"] = field(default_factory=dict)


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
    """Profile some training steps of an experiment, in one process."""
    quieten()
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
        flops, looked_up = (
            count_flops(session, example, processes),
            bytes_looked_up(session, dataset.schema, example),
        )
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
    (out / "breakdown.json").write_text(json.dumps(result, indent=1))
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


def phase_of(name: str, around: str) -> str:
    """The phase of a region or operation inside another, whose phase is `around`."""
    return next((phase for phase, pattern in PHASES.items() if re.match(f".*({pattern})", name)), around)


def phases(events: Iterable[Any], num_steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds a step by phase: of the training thread, and of the GPU in what that thread launched."""
    host: dict[str, float] = defaultdict(float)
    device: dict[str, float] = defaultdict(float)

    elsewhere = _backward_roots(events)

    def add(event: Any, around: str) -> None:
        phase = phase_of(event.name, around)
        waits = elsewhere and event.name.startswith("## backward")
        host[phase] += 0 if waits else event.self_cpu_time_total / num_steps / 1000
        device[phase] += event.self_device_time_total / num_steps / 1000
        for child in event.cpu_children:
            add(child, phase)

    for step in _steps(events):
        add(step, OTHER)
    for event in elsewhere:
        add(event, "dense backward")
    names = [*PHASES, OTHER]
    return {
        name: {"host": host[name], "device": device[name]} for name in names if host[name] or device[name]
    }


def _steps(events: Iterable[Any]) -> list[Any]:
    return [event for event in events if event.name == STEP and event.device_type == DeviceType.CPU]


def _backward_roots(events: Iterable[Any]) -> list[Any]:
    """What a GPU's backward pass does, in a thread of its own that the training thread waits for."""
    steps = _steps(events)
    main = steps[0].thread
    return [
        event
        for event in events
        if event.thread != main
        and event.cpu_parent is None
        and event.name.startswith("autograd::engine")
        and event.device_type == DeviceType.CPU
    ]


def flame(events: Iterable[Any]) -> Frame:
    """Calls of the same name in the same place are one box."""
    root = Frame("step", OTHER)

    def add(event: Any, below: Frame) -> None:
        name = re.sub(r" \d+ ##$", " ##", event.name)
        box = below.above.setdefault(name, Frame(name, phase_of(event.name, below.phase)))
        box.microseconds += event.cpu_time_total
        for child in event.cpu_children:
            add(child, box)

    for step in _steps(events):
        root.microseconds += step.cpu_time_total
        for child in step.cpu_children:
            add(child, root)
    if backward := root.above.get("## backward ##"):
        for event in _backward_roots(events):
            add(event, backward)
    return root


def draw(root: Frame, title: str, num_steps: int) -> Figure:
    """A flame graph: a box's width is its share of the step, on top of it is what it called."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    axes = figure.add_subplot()
    colors = dict(zip([*PHASES, OTHER], [*COLORS[:-1], "#999933", "#F0E442", "#BBBBBB"], strict=True))
    deepest = 0

    def box(frame: Frame, left: float, depth: int) -> None:
        nonlocal deepest
        deepest = max(deepest, depth)
        width = frame.microseconds / root.microseconds
        axes.barh(
            depth,
            width,
            left=left,
            height=1,
            color=colors[frame.phase],
            edgecolor="white",
            linewidth=0.3,
            alpha=0.75,
        )
        letters = int(width * 190)
        if letters > 3:
            name = frame.name.strip("# ")
            axes.text(
                left + width / 2, depth, name[:letters], ha="center", va="center", fontsize=6, clip_on=True
            )
        for above in sorted(frame.above.values(), key=lambda other: -other.microseconds):
            if above.microseconds / root.microseconds >= SMALLEST:
                box(above, left, depth + 1)
                left += above.microseconds / root.microseconds

    box(root, 0.0, 0)
    axes.set(xlim=(0, 1), ylim=(-0.5, deepest + 0.5), yticks=[], xlabel="share of the step")
    axes.set_title(f"{title}, {root.microseconds / num_steps / 1000:.1f} ms under the profiler", fontsize=9)
    handles = [axes.barh(0, 0, color=color, alpha=0.75) for color in colors.values()]
    figure.legend(handles=handles, labels=list(colors), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def gpu_use(events: Iterable[Any], num_steps: int, flops: int, looked_up: int) -> dict[str, float]:
    """What a GPU did: its busy share, and how near its matrix products and lookups come to its own limits.

    The limits are measured here, at once: bf16 products of large matrices, and a copy of a large tensor.
    """
    kernels = [
        event for event in events if event.device_type == DeviceType.CUDA and event.time_range.elapsed_us()
    ]
    kernels = [
        event for event in kernels if not event.name.startswith(("##", "[", "ProfilerStep", "Optimizer."))
    ]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    busy, last = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, last))
        last = max(last, end)

    def microseconds(pattern: str) -> float:
        """Of the kernels of such a name, a step."""
        found = [e.time_range.elapsed_us() for e in kernels if re.search(pattern, e.name, re.IGNORECASE)]
        return sum(found) / num_steps

    products = microseconds(r"gemm|cutlass|xmma|nvjet")
    lookup = microseconds(r"split_embedding.*forward")
    update = microseconds(r"split_embedding.*backward")
    return {
        "busy": busy / (last - spans[0][0]),
        "longest_gap_us": max(
            (start - end for (start, _), end in zip(spans[1:], _running_end(spans), strict=False)),
            default=0.0,
        ),
        "milliseconds": (last - spans[0][0]) / num_steps / 1000,
        "products_milliseconds": products / 1000,
        "products_tflops": flops / products / 1e6 if products else 0.0,
        "lookup_milliseconds": lookup / 1000,
        # Rows are read and their sums written; the update reads gradients, and reads and writes rows.
        "lookup_gb_per_second": 2 * looked_up / lookup / 1e3 if lookup else 0.0,
        "update_milliseconds": update / 1000,
        "update_gb_per_second": 3 * looked_up / update / 1e3 if update else 0.0,
        "peak_tflops_bf16": _peak_tflops(torch.bfloat16),
        "peak_tflops_fp32": _peak_tflops(torch.float32),
        "copy_gb_per_second": _copy_rate() / 1e9,
    }


def _running_end(spans: list[tuple[float, float]]) -> Iterator[float]:
    last = 0.0
    for _, end in spans:
        last = max(last, end)
        yield last


def _peak_tflops(dtype: torch.dtype, size: int = 8192) -> float:
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds_on_gpu(lambda: a @ b) / 1e12


def _copy_rate(count: int = 1 << 30) -> float:
    source = torch.zeros(count, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * count / _seconds_on_gpu(lambda: target.copy_(source))


def _seconds_on_gpu(action: Any, repeat: int = 10) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        action()
    start.record()
    for _ in range(repeat):
        action()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeat / 1000


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
    try:
        typer.run(main)
    except UserError as error:
        print(f"breakdown: {error}", file=sys.stderr)
        sys.exit(2)
