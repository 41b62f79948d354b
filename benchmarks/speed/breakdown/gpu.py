"""What a GPU does of a step, beside what it could do."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType


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
