"""What a contender says of itself: a line for each step, which the parent reads."""

import json
import time
from pathlib import Path


class StepLog:
    """Appends `{"step": ..., "seconds": ...}`, as a run's `metrics.jsonl` has them; seconds are of a steady clock."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._step = 0

    def step(self) -> None:
        """Say that one more step is done."""
        self._step += 1
        self._file.write(json.dumps({"step": self._step, "seconds": time.perf_counter()}) + "\n")
