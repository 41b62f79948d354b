"""Smoke runs: every variant of a study trained for two steps on random data, to see that it can be trained at all.

A few processes train all variants, forked with TorchRec loaded, which takes longer than such a run.
"""

import os
import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children
from pathlib import Path

from rich.console import Console

from cetnet.benchmarks.study.definition import Run, Study, runs_of
from cetnet.benchmarks.study.report.compose import write_report
from cetnet.benchmarks.study.teachers import waves
from cetnet.trainer.check_run import check_run
from cetnet.trainer.checkpoint.store import CHECKPOINTS
from cetnet.trainer.console import output
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import locked
from cetnet.trainer.processes.fork_server import fork_server, wait_until_loaded
from cetnet.trainer.processes.launcher import end_with_parent, signals_blocked

SMOKE = Path("runs/smoke")
ROWS = 160  # 128 of them train
MAX_TABLE_ROWS = 500
MAX_WORKERS = 4
OVERRIDES = {"data.batch_size": 64, "training.max_steps": 2, "training.log_every": 1, "checkpoint.path": None}
NOTE = (
    f"**A smoke run: {ROWS} random rows, {OVERRIDES['training.max_steps']} steps, one seed. It shows that every "
    "variant can be trained; its numbers mean nothing.**\n\n"
)


def smoke_study(path: Path, console: Console | None = None) -> None:
    """Train every variant of a study on random rows in its schema, and write its report to runs/smoke/<name>.

    What was there before is replaced.

    Raises:
        UserError: the study is wrong or names no schema, or a variant cannot be trained.
    """
    console = console or output
    study = Study.load(path)
    if study.data_schema is None:
        raise UserError(f"{path}: --smoke needs `schema`, the file that says which columns the data has")
    folder = SMOKE / study.name
    with locked(SMOKE, f".{study.name}.lock", f"{study.name} is tried here by another process; wait for it"):
        _train_all(study, path, folder, console)


def _train_all(study: Study, path: Path, folder: Path, console: Console) -> None:
    assert study.data_schema is not None
    shutil.rmtree(folder, ignore_errors=True)
    data = folder / "_data"  # as no variant is called
    _prepare(path.parent / study.data_schema, data)
    smoked = {**OVERRIDES, "data.path": str(data), "evaluation.splits": [study.split]}
    study = study.model_copy(
        update={
            "out": folder,
            "title": f"SMOKE RUN of {study.title or study.name}",
            "description": NOTE + study.description,
            "seeds": study.seeds[:1],
            "more_seeds": None,
            "nproc": 1,
            "variants": {name: {**overrides, **smoked} for name, overrides in study.variants.items()},
        }
    )
    runs = runs_of(study, path)
    workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)), len(runs))
    taught_by = {folder for run in runs for folder in run.needs}
    done = 0
    with _pool(workers) as pool:
        for wave in waves(runs):
            with signals_blocked():  # until all workers are known, which are killed if one comes
                futures = {pool.submit(_train, run, run.folder in taught_by): run for run in wave}
            try:
                for future in as_completed(futures):
                    done += 1
                    console.print(f"{done}/{len(runs)} {futures[future].variant}: {future.result():.1f} s")
            except (KeyboardInterrupt, SystemExit):
                for worker in active_children():
                    worker.kill()
                raise
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    for folder in taught_by:
        shutil.rmtree(folder / CHECKPOINTS)
    write_report(study, f"cetnet study {path} --smoke", runs, console)


def _pool(workers: int) -> ProcessPoolExecutor:
    context = fork_server(workers)
    wait_until_loaded(context)
    try:
        return ProcessPoolExecutor(workers, context, _start_worker, (workers,))
    except OSError as error:  # of the semaphores between the processes
        raise UserError(
            f"--smoke needs semaphores of the system, on Linux in /dev/shm ({error.strerror}); mount that, writable"
        ) from error


def _prepare(schema: Path, out: Path) -> None:
    from cetnet.trainer.prepare.sources.random import prepare_random

    prepare_random(schema, ROWS, out, MAX_TABLE_ROWS)


def _start_worker(workers: int) -> None:
    import torch

    from cetnet.trainer.console import console, quieten

    end_with_parent(signal.SIGKILL)  # the server, which ignores signals and ends with its own
    quieten()
    console.quiet = True
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    # TorchRec writes the whole model, numbers and all, into a log that nobody reads.
    torch.set_printoptions(threshold=0, edgeitems=1)


def _train(run: Run, teaches: bool) -> float:
    """Train one variant, and keep its checkpoints if it is to teach others; the seconds that it took."""
    from cetnet.trainer.config import load_config
    from cetnet.trainer.processes.distributed import process_group
    from cetnet.trainer.train import train

    start = time.monotonic()
    try:
        config = load_config(run.base, run.overrides)
        with process_group(config.training.device) as processes:
            train(check_run(config, processes.world_size), processes)
    except UserError as error:
        raise UserError(f"{run.variant}: {error}") from None
    if not teaches:
        shutil.rmtree(run.folder / CHECKPOINTS)
    return time.monotonic() - start
