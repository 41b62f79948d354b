"""What a run skips: bad rows, written aside and counted, up to a limit."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from cetnet.trainer.data.bad_rows import BadRow
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import disk_errors, drop_lines_after
from cetnet.trainer.processes.distributed import Processes, on_every_rank


class Quarantine:
    """The bad rows that a run skipped, of which every rank writes a file; made and asked by all ranks at once.

    Args:
        folder: receives `rank-<r>.jsonl`, a line per bad row and step, and `evaluation-<split>.jsonl`.
        limit: rows of a run, over all ranks, or of one evaluation; more are an error.
        step: that of the checkpoint the run goes on from; what was skipped later is forgotten.
        saved: the count in that checkpoint; the files may be lost, and older checkpoints have none.
        processes: the ranks.

    Attributes:
        limit: as given.
        count: rows of all ranks, when they were last counted.

    Raises:
        UserError: the limit is exceeded already.
    """

    def __init__(self, folder: Path, limit: int, step: int, saved: int, processes: Processes) -> None:
        self._folder, self.limit, self._group = folder, limit, processes.cpu_group
        self._file = folder / f"rank-{processes.rank:05d}.jsonl"
        self._new = 0
        before = torch.zeros((), dtype=torch.int64)
        if processes.is_main:
            with disk_errors(folder):
                before += sum(drop_lines_after(file, step) for file in sorted(folder.glob("rank-*.jsonl")))
        dist.broadcast(before, 0, group=self._group)  # nobody writes before the old lines are dropped
        self.count = max(saved, int(before))
        self._check(self.count)

    def add(self, step: int, rows: list[BadRow]) -> None:
        """Write down what this rank skipped at a step, unless there are too many already."""
        if rows and self._new <= self.limit:
            with disk_errors(self._folder):
                self._folder.mkdir(exist_ok=True)
                with self._file.open("a", encoding="utf-8") as file:
                    file.writelines(_lines(rows, step))
        self._new += len(rows)

    def recount(self) -> str | None:
        """Count over all ranks; returns a line for the user if there are more than before.

        Raises:
            UserError: the limit is exceeded, on every rank.
        """
        new = torch.tensor(self._new)
        dist.all_reduce(new, group=self._group)
        self.count, self._new = self.count + int(new), 0
        self._check(self.count)
        if not new:
            return None
        return f"bad rows skipped so far: {self.count:,} (data.bad_rows_limit={self.limit}): {self._folder}"

    def evaluated(self, split: str, rows: list[BadRow]) -> str | None:
        """Write down what every rank left out of a split's evaluation; returns a line for the user, if any did.

        Raises:
            UserError: more than the limit, on every rank.
        """
        rows = [row for part in on_every_rank(lambda: rows, self._group) for row in part]
        file = self._folder / f"evaluation-{split}.jsonl"
        if dist.get_rank() == 0 and (rows or file.exists()):
            with disk_errors(self._folder):
                self._folder.mkdir(exist_ok=True)
                file.write_text("".join(_lines(rows)), encoding="utf-8")
        self._check(len(rows))
        return f"{split}: bad rows left out: {len(rows):,} ({file})" if rows else None

    def _check(self, count: int) -> None:
        if count > self.limit:
            raise UserError(
                f"{self._folder}: more than data.bad_rows_limit={self.limit} bad rows; fix the data and prepare "
                "it again, or raise the limit and --resume"
            )


def _lines(rows: Iterable[BadRow], step: int | None = None) -> Iterator[str]:
    at = {} if step is None else {"step": step}
    for row in rows:
        yield json.dumps(at | row._asdict() | {"file": str(row.file)}) + "\n"
