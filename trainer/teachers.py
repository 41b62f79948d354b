"""Teachers of a run: they score its training split once, before it starts, into files of its folder."""

import gc
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cetnet.trainer.check_run import CheckedRun
from cetnet.trainer.checkpoint.manifest import MANIFEST
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.checkpoint.trainer_state import identity
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import console
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.errors import UserError
from cetnet.trainer.evaluate import load_session, load_trained, score_with_progress
from cetnet.trainer.files import disk_errors, write_json, written_aside
from cetnet.trainer.processes.distributed import Processes, on_every_rank, on_main
from cetnet.trainer.run_folder import RESULT, TeacherFiles, teacher_files

_LEAST = 1e-15  # probabilities are taken so far from 0 and 1: logits are between -34.5 and 34.5


def taught_reader(run: CheckedRun, processes: Processes) -> Reader:
    """The reader of a run's training split, with the logits of its teachers if it has any; every rank calls it.

    The teachers score the split now, unless an earlier start has written what they say.

    Raises:
        UserError: on every rank: a teacher can't be loaded, what is there is of another teacher or of other data, or
            a rank doesn't see what rank 0 wrote.
    """
    data, seed = run.config.data, run.config.training.seed
    teachers = _teach(run.config, run.dataset, processes)
    return Reader.of(data, run.dataset, seed, processes.rank, processes.world_size, teachers)


def _teach(config: RunConfig, dataset: Dataset, processes: Processes) -> list[NDArray[np.float32]]:
    """Logits of each teacher for the rows of the training split, `[num_rows]`, memory-mapped; NaN of bad rows."""
    teacher, group = config.training.teacher, processes.cpu_group
    found = []
    for number, run in enumerate(teacher.runs if teacher else (), 1):
        files = teacher_files(config.run_dir, number)
        on_main(partial(_check_kept, files, run, dataset), group)
        if not on_every_rank(files.record.exists, group)[0]:
            _score(run, dataset, files, processes)
        found.append(_read(files, dataset.num_rows, processes))
    return found


def _check_kept(files: TeacherFiles, run: Path, dataset: Dataset) -> None:
    """Raise UserError if there are logits of another model, or of other data."""
    if not files.record.exists():
        return
    kept = json.loads(files.record.read_text(encoding="utf-8"))
    changed = "of other data than there is now" if kept["data"] != _digest_of_data(dataset) else None
    # One that is gone is not missed: it has said what it had to say.
    if run.exists() and kept["teacher"] != _digest_of_model(load_trained(run)[1]):
        changed = f"of another model than {run} has now"
    if changed:
        raise UserError(
            f"{files.logits}: predictions {changed}, and this run began with them; restore it, or choose another "
            "run_dir=..."
        )


def _score(run: Path, dataset: Dataset, files: TeacherFiles, processes: Processes) -> None:
    config, checkpoint = load_trained(run)
    if processes.is_main:
        console.print(f"{run}: scoring the {dataset.num_rows:,} rows that it is to teach")
    session = load_session(config, checkpoint, dataset.schema, processes)
    batch_size = config.evaluation.batch_size or config.data.batch_size
    scores = score_with_progress(session, dataset, batch_size, processes)
    del session
    gc.collect()  # its tables, before those of the student are made

    def write() -> None:
        assert scores is not None
        probability = np.clip(next(iter(scores.probability.values())), _LEAST, 1 - _LEAST)
        logits = np.full(dataset.num_rows, np.nan, np.float32)
        logits[scores.scored] = np.log(probability) - np.log1p(-probability)
        ne = scores.measure().metrics["ne/fused"]
        record: dict[str, Any] = {
            "run": str(run),
            "checkpoint": str(checkpoint),
            "teacher": _digest_of_model(checkpoint),
            "data": _digest_of_data(dataset),
            "ne": ne if np.isfinite(ne) else None,
        }
        with disk_errors(files.logits):
            files.logits.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(files.logits) as aside, aside.open("wb") as file:
                np.save(file, logits, allow_pickle=False)
            write_json(files.record, record)  # last: it says that the logits are there
        console.print(f"{run}: NE {ne:.5f} on the rows that it teaches{_held_out(run)}")

    on_main(write, processes.cpu_group)


def _held_out(run: Path) -> str:
    """What the teacher's NE is where it hasn't learned, in words: soft labels of rows known by heart teach little."""
    splits = json.loads((run / RESULT).read_text(encoding="utf-8"))["splits"]
    known = [
        f"{of_split['ne/fused']:.5f} on {name}" for name, of_split in splits.items() if of_split["ne/fused"]
    ]
    return f" ({', '.join(known)})" if known else ""


def _read(files: TeacherFiles, num_rows: int, processes: Processes) -> NDArray[np.float32]:
    logits: list[NDArray[np.float32]] = []

    def read() -> None:
        if not files.logits.exists():
            raise UserError(
                f"{files.logits}: not there on the host of rank {processes.rank}; with training.teacher, run_dir "
                "must be on a disk that all hosts see"
            )
        try:
            logits.append(np.load(files.logits, mmap_mode="r", allow_pickle=False))
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{files.logits}: cannot be read ({error}); remove {files.record}") from None
        if logits[0].shape != (num_rows,):
            raise UserError(
                f"{files.logits}: shape {logits[0].shape}, and the split has {num_rows:,} rows; remove {files.record}"
            )

    on_every_rank(read, processes.cpu_group)
    return logits[0]


def _digest_of_model(checkpoint: Place) -> str:
    """Of the checksums of a checkpoint's files; of its `trainer.json` where an earlier version has kept none."""
    manifest = checkpoint / MANIFEST
    content = (manifest if manifest.exists() else checkpoint / "trainer.json").read_bytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digest_of_data(dataset: Dataset) -> str:
    content = json.dumps(identity(dataset), sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
