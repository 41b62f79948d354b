"""Whether a run under faults ended like the undisturbed one: was every row trained once, are the numbers the same?"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cetnet.benchmarks.chaos.attempts import RestartedRun
from cetnet.trainer.checkpoint.safe_load import SafeReader
from cetnet.trainer.run_folder import RESULT

NE_TOLERANCE = 1e-6


class Verdict(NamedTuple):
    """What must hold, whether it does, and what was found."""

    what: str
    holds: bool
    found: str


def judge(disturbed: RestartedRun, calm: RestartedRun, elastic: bool, num_rows: int) -> Iterator[Verdict]:
    """Compare the two runs, which are finished."""
    ours, theirs = disturbed.history(), calm.history()
    counts = Counter(row for step in ours for row in step)
    wrong = sum(counts[row] != 1 for row in counts.keys() | set(range(num_rows)))
    yield Verdict("every row exactly once", not wrong, f"{wrong} of {num_rows:,} rows wrong")
    unequal = sum(a != b for a, b in itertools.zip_longest(ours, theirs))
    yield Verdict("the same rows at each step", not unequal, f"{unequal} of {len(theirs)} steps differ")
    one, other = (
        json.loads((run / RESULT).read_text(encoding="utf-8")) for run in (disturbed.run_dir, calm.run_dir)
    )
    apart = [abs(one["train"][name] - value) for name, value in other["train"].items()]
    test = other["splits"]["test"].items()
    apart += [abs(one["splits"]["test"][name] - value) for name, value in test if name.startswith("ne/")]
    near = max(apart) <= NE_TOLERANCE
    yield Verdict("the same NE, progressive and on test", near, f"at most {max(apart):.1e} apart")
    if not elastic:
        assert disturbed.newest is not None
        assert calm.newest is not None
        tensors = tensors_of(calm.newest)
        different = differing(tensors_of(disturbed.newest), tensors)
        found = f"{len(different)} of {len(tensors)} tensors differ"
        yield Verdict("the same parameters and optimizer states, bit for bit", not different, found)


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole."""
    reader = SafeReader(checkpoint)
    tensors = {
        key: torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for key, tensor in reader.read_metadata().state_dict_metadata.items()
        if isinstance(tensor, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that differ in a bit, or that only one side has."""

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()

    both = one.keys() & other.keys()
    return sorted((one.keys() ^ other.keys()) | {key for key in both if not same(one[key], other[key])})
