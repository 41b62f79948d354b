"""Freed memory stays with the process."""

import subprocess
import sys

COUNT = """
import resource
import torch
from cetnet.trainer.processes.malloc import keep_freed_memory
{}
def use():
    for _ in range(4):
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
for _ in range(8):  # the heap grows at first
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(first: str) -> int:
    out = subprocess.run(
        [sys.executable, "-c", COUNT.format(first)], capture_output=True, text=True, check=True
    )
    return int(out.stdout)


def test_pages_are_not_faulted_in_again() -> None:
    """Four blocks of 64 MiB, of small pages or huge ones."""
    assert page_faults("keep_freed_memory()") < page_faults("") / 10
