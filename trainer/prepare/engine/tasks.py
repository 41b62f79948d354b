"""Tasks that survive a kill: each writes one folder aside and renames it, so what exists is whole and is skipped.

    with work_folder(out, job, sizes, overwrite) as (work, sizes), executor(resources) as pool:
        run_tasks(pool, workers, "read (MB)", function, [Task(work / "typed/000000", weight, (arguments...))])

The pool is any `concurrent.futures.Executor`: this process, processes of this machine, or a Dask cluster's workers.
"""

import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from pydantic import ByteSize, TypeAdapter, ValidationError

from cetnet.trainer.console import progress_bar
from cetnet.trainer.data import arrow_types
from cetnet.trainer.encoder import arrow_values, hashing, patterns, vocabulary
from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import reason, remedy
from cetnet.trainer.files import write_json
from cetnet.trainer.prepare.engine.layout import check_out, locked_folder
from cetnet.trainer.processes.launcher import signals_blocked

PROCESS_BYTES = 250_000_000  # of a worker that has imported everything and holds no data
# peak memory of a task over the raw bytes of its chunk: 6 for Criteo's columns, 28 for lists of digits
BYTES_PER_CHUNK_BYTE = 32
MAX_CHUNK_BYTES = 64_000_000
MIN_CHUNK_BYTES = 1_000_000


class Unfinished(UserError):
    """A failure that is not the data's: the work folder stays, and the same command goes on from there."""


@dataclass(frozen=True)
class TaskSizes:
    """Sizes that keep each task within its share of the memory; they don't influence the result.

    Attributes:
        chunk_bytes: raw bytes (uncompressed) that one task parses at a time.
        bucket_bytes: memory for the distinct values, or the rows to sort, that one task holds at a time.
    """

    chunk_bytes: int
    bucket_bytes: int


@dataclass(frozen=True)
class Resources:
    """Where tasks run: so many at a time, each with `share` bytes of memory; on a Dask cluster if `scheduler`."""

    workers: int
    share: int
    scheduler: str | None = None

    def sizes(self) -> TaskSizes:
        """Those that keep to this share."""
        return TaskSizes(min(MAX_CHUNK_BYTES, self.share // BYTES_PER_CHUNK_BYTE), self.share // 2)

    def fit(self, sizes: TaskSizes) -> "Resources":
        """As many workers as may keep to sizes with which work was begun earlier; Unfinished if not even one."""
        need = max(sizes.chunk_bytes * BYTES_PER_CHUNK_BYTE, 2 * sizes.bucket_bytes)
        if need <= self.share:
            return self
        together = self.workers if self.scheduler is None else 1
        workers = together * (self.share + PROCESS_BYTES) // (need + PROCESS_BYTES)
        if workers < 1:
            total = (need + 2 * PROCESS_BYTES) // 10**6 + 1
            raise Unfinished(
                f"the work folder was begun with more memory: give --memory {total}MB, or remove it"
            )
        return Resources(workers, need)


def parse_memory(text: str) -> int:
    """Bytes of "4GB", "512MB" or "1.5GiB", as `pydantic.ByteSize` reads them; less than a megabyte is a UserError."""
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        size = ByteSize(0)
    # ByteSize takes a number without a unit for bytes, and "1.2.3GB" for the 1.2 that it begins with
    if size < MIN_CHUNK_BYTES:
        raise UserError(f"--memory {text}: give a size such as 4GB, 512MB or 1.5GiB")
    return int(size)


def local_resources(memory: int | None, workers: int | None) -> Resources:
    """This machine's: by default half of its memory and all of its cores, fewer if the memory is not enough.

    The main process and each worker count as PROCESS_BYTES; the rest is shared among the workers.
    """
    memory = memory or psutil.virtual_memory().total // 2
    least = PROCESS_BYTES + MIN_CHUNK_BYTES * BYTES_PER_CHUNK_BYTE
    if memory < PROCESS_BYTES + least:
        raise UserError(
            f"--memory {memory // 10**6}MB is too little: give {(PROCESS_BYTES + least) // 10**6 + 1}MB"
        )
    cores = len(os.sched_getaffinity(0))
    workers = min(workers or cores, (memory - PROCESS_BYTES) // least)
    return Resources(workers, (memory - PROCESS_BYTES) // workers - PROCESS_BYTES)


def find_resources(memory: str | None, workers: int | None, scheduler: str | None) -> Resources:
    """The Dask cluster's, or this machine's; see `prepare_table`."""
    limit = parse_memory(memory) if memory else None
    return dask_resources(scheduler, limit) if scheduler else local_resources(limit, workers)


# ---------------------------------------------------------------------------------------------- work folder


def identity(path: Path) -> list[Any]:
    """What a job knows a raw file by; a file that isn't there is a UserError."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def program_files() -> list[Path]:
    """The program's own files that the bytes of a preparation depend on: engine, sources, values' types and hash."""
    prepare = Path(__file__).parents[1]
    folders = (prepare, prepare / "engine", prepare / "sources")
    modules = (arrow_types, arrow_values, hashing, patterns, vocabulary)
    shared = [Path(str(module.__file__)) for module in modules]
    return [*shared, *(path for folder in folders for path in sorted(folder.glob("*.py")))]


def _program() -> dict[str, str]:
    """What a job knows the program by: the preparations' own text, and the libraries that make the files."""
    digest = sha256(b"".join(path.read_bytes() for path in program_files())).hexdigest()
    return {"cetnet": digest, **{name: version(name) for name in ("numpy", "polars", "pyarrow", "torch")}}


@contextmanager
def work_folder(
    out: Path, job: Mapping[str, Any], sizes: TaskSizes, overwrite: bool
) -> Iterator[tuple[Path, TaskSizes]]:
    """The folder `.NAME.work` beside `out`, and the sizes it was begun with; it is removed at the end.

    It stays after a kill, Ctrl-C or an `Unfinished`, and the same `job` (a JSON mapping that says what the result
    depends on) goes on from it; that of another job, or of another version of the program, is a UserError unless
    `overwrite`. A UserError removes it.
    """
    check_out(out, overwrite)
    job = {**job, "program": _program()}
    with locked_folder(out, "work") as folder:
        file = folder / "job.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if found is not None and found["job"] != json.loads(json.dumps(job)):
            if not overwrite:
                raise UserError(
                    f"{folder} is the unfinished work of another preparation (or of changed files, or of another "
                    "version of the program): finish that one, remove the folder, or replace it with --overwrite"
                )
            found = None
        if found is None:
            file.unlink(missing_ok=True)  # first, so that a folder that is half removed is nobody's work
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            write_json(file, {"job": job, "sizes": asdict(sizes)})
        else:
            sizes = TaskSizes(**found["sizes"])
            done = sum(1 for path in folder.glob("*/[0-9a-z]*"))
            print(f"{folder}: going on from {done} finished tasks", file=sys.stderr)
            for path in folder.glob("*/.*"):
                shutil.rmtree(path, ignore_errors=True)
        try:
            yield folder, sizes
        except Unfinished:
            raise
        except UserError:
            file.unlink()
            shutil.rmtree(folder)
            raise
        except OSError as error:
            raise Unfinished(
                f"{error.filename or folder}: {reason(error)}; {remedy(error, 'fix it')}, and the same command "
                "goes on from there"
            ) from error
        except (KeyboardInterrupt, SystemExit):
            print(f"interrupted: the same command goes on from {folder}", file=sys.stderr)
            raise
        try:
            file.unlink()
            shutil.rmtree(folder)
        except OSError as error:  # the result is whole
            print(f"{folder}: not removed ({error.strerror}); it is not needed any more", file=sys.stderr)


# ------------------------------------------------------------------------------------------------ executors


class _ThisProcess(Executor):
    """Runs each task where it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Workers(ProcessPoolExecutor):
    """Processes that leave the signals that their whole group gets to their parent, from their first moment."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with signals_blocked():
            return super().submit(fn, *args, **kwargs)


def _start_worker() -> None:
    """A worker does not outlive its parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def executor(resources: Resources) -> Iterator[Executor]:
    """Processes with so many polars threads that all cores are used once; this process if one worker suffices."""
    if resources.scheduler is not None:
        with _dask_client(resources.scheduler) as client:
            yield client.get_executor(pure=False)
        return
    if resources.workers == 1:
        yield _ThisProcess()
        return
    # polars reads the variable once, when a worker first imports it; this process has imported it before
    before = os.environ.get("POLARS_MAX_THREADS")
    threads = max(1, len(os.sched_getaffinity(0)) // resources.workers)
    os.environ["POLARS_MAX_THREADS"] = str(threads)
    try:
        pool = _Workers(resources.workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    except OSError as error:  # their semaphores are files there
        raise Unfinished(f"/dev/shm: {error.strerror}; make it writable, or give --workers 1") from error
    try:
        yield pool
    except (KeyboardInterrupt, SystemExit):
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        del os.environ["POLARS_MAX_THREADS"]
        if before is not None:
            os.environ["POLARS_MAX_THREADS"] = before


@contextmanager
def _dask_client(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise UserError(
            "--scheduler needs the package distributed, here and on the workers: pip install 'cetnet[distributed]'"
        ) from None
    try:
        client = Client(address, timeout=5, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {address}: no Dask scheduler answers there; give its address, such as tcp://HOST:8786"
        ) from error
    with client:
        yield client


def dask_resources(address: str, memory: int | None) -> Resources:
    """What a Dask cluster has now: its threads, each with its share of its worker's memory limit (or of `memory`)."""
    with _dask_client(address) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if not workers:
        raise UserError(f"--scheduler {address} has no workers: start some with `dask worker {address}`")
    # a worker's process is shared by its threads
    half = psutil.virtual_memory().total // 2
    share = min(
        ((memory or worker["memory_limit"] or half) - PROCESS_BYTES) // worker["nthreads"]
        for worker in workers
    )
    if share < MIN_CHUNK_BYTES * BYTES_PER_CHUNK_BYTE:
        raise UserError(
            f"--scheduler {address}: {share // 10**6}MB for each thread of a worker is too little"
        )
    return Resources(sum(worker["nthreads"] for worker in workers), share, address)


# ---------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """A folder to make, its share of the stage's progress, and the function's further arguments."""

    out: Path
    weight: int
    arguments: tuple[Any, ...]


def read_facts(folder: Path) -> Any:
    """What a task says of its output."""
    return json.loads((folder / "facts.json").read_text(encoding="utf-8"))


def write_facts(folder: Path, facts: object) -> None:
    """Say something of a task's output, in JSON."""
    write_json(folder / "facts.json", facts)


def _run(function: Callable[..., None], task: Task) -> None:
    aside = task.out.with_name(f".{task.out.name}.{uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        function(aside, *task.arguments)
        try:
            aside.rename(task.out)
        except OSError:
            # Else a second attempt at the same task was first, with the same content.
            if not task.out.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def run_tasks(
    pool: Executor, workers: int, stage: str, function: Callable[..., None], tasks: Sequence[Task]
) -> None:
    """Call `function(folder, *arguments)` for every task whose folder does not exist yet, in a pool of `workers`.

    Tasks start in their order; of several failures that of the first one in this order is raised, after all before
    it have ended: so what is raised does not depend on the number of workers.
    """
    todo = iter([(number, task) for number, task in enumerate(tasks) if not task.out.exists()])
    running: dict[Future[None], tuple[int, Task]] = {}
    errors: dict[int, BaseException] = {}
    with progress_bar() as progress:
        bar = progress.add_task(stage, total=sum(task.weight for task in tasks))
        progress.advance(bar, sum(task.weight for task in tasks if task.out.exists()))
        while True:
            while len(running) < 2 * workers and not errors and (item := next(todo, None)):
                running[pool.submit(_run, function, item[1])] = item
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, task = running.pop(future)
                if error := future.exception():
                    errors[number] = error
                progress.advance(bar, task.weight)
    if errors:
        error = errors[min(errors)]
        if isinstance(error, BrokenProcessPool):
            raise Unfinished(
                f"a worker died in the stage {stage} (out of memory?): the same command goes on from there; give "
                "fewer --workers or less --memory than the machine has"
            ) from error
        raise error
