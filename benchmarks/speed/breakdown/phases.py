"""The phases of a step: which regions of a profile belong to which, and what each takes."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch.autograd import DeviceType

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


def phase_of(name: str, around: str) -> str:
    """The phase of a region or operation inside another, whose phase is `around`."""
    return next((phase for phase, pattern in PHASES.items() if re.match(f".*({pattern})", name)), around)


def phases(events: Iterable[Any], num_steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds a step by phase: of the training thread, and of the GPU in what that thread launched."""
    host: dict[str, float] = defaultdict(float)
    device: dict[str, float] = defaultdict(float)

    elsewhere = backward_roots(events)

    def add(event: Any, around: str) -> None:
        phase = phase_of(event.name, around)
        waits = elsewhere and event.name.startswith("## backward")
        host[phase] += 0 if waits else event.self_cpu_time_total / num_steps / 1000
        device[phase] += event.self_device_time_total / num_steps / 1000
        for child in event.cpu_children:
            add(child, phase)

    for step in steps_of(events):
        add(step, OTHER)
    for event in elsewhere:
        add(event, "dense backward")
    names = [*PHASES, OTHER]
    return {
        name: {"host": host[name], "device": device[name]} for name in names if host[name] or device[name]
    }


def steps_of(events: Iterable[Any]) -> list[Any]:
    """The profiled steps, with all that is inside them."""
    return [event for event in events if event.name == STEP and event.device_type == DeviceType.CPU]


def backward_roots(events: Iterable[Any]) -> list[Any]:
    """What a GPU's backward pass does, in a thread of its own that the training thread waits for."""
    steps = steps_of(events)
    main = steps[0].thread
    return [
        event
        for event in events
        if event.thread != main
        and event.cpu_parent is None
        and event.name.startswith("autograd::engine")
        and event.device_type == DeviceType.CPU
    ]
