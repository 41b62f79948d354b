"""What is done to a run: the faults, each to an attempt that trains, and what the trainer must answer."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cetnet.benchmarks.chaos.attempts import Attempt, ChaosError, RestartedRun, until


def kill_a_rank(run: RestartedRun, attempt: Attempt) -> None:
    """SIGKILL to one of the ranks."""
    run.rng.choice(attempt.ranks()).kill()
    if attempt.wait() in (0, 2, os.EX_TEMPFAIL):
        raise ChaosError(
            f"{attempt.log}: a rank was killed, and the exit code was {attempt.process.returncode}"
        )


def kill_the_job(_run: RestartedRun, attempt: Attempt) -> None:
    """SIGKILL to launcher and ranks."""
    attempt.kill()


def terminate(_run: RestartedRun, attempt: Attempt) -> None:
    """SIGTERM to the launcher: exit code 75, and the step is saved."""
    attempt.process.terminate()
    attempt.expect_exit(os.EX_TEMPFAIL, "stopped by SIGTERM at step")


def truncate_the_newest(run: RestartedRun, attempt: Attempt) -> None:
    """The job is killed, and a file of the newest checkpoint cut: one line, and on with the one before."""
    until(lambda: run.newest is not None, attempt)
    attempt.kill()
    checkpoint = run.newest
    assert checkpoint is not None
    file = run.rng.choice(sorted(checkpoint.iterdir()))
    os.truncate(file, run.rng.randrange(file.stat().st_size))
    refused = run.start(attempt.world_size)
    try:
        refused.expect_exit(2, f"cetnet: {checkpoint}: damaged ({file.name} ")
    finally:
        refused.kill()
    shutil.move(checkpoint, run.folder / f"damaged-{attempt.number}-{checkpoint.name}")


def fill_the_disk(run: RestartedRun, attempt: Attempt) -> None:
    """Nothing more can be written: one line; then there is room again."""
    if run.disk is None:  # nearly the same: no file may be as large as a checkpoint's
        for rank in attempt.ranks():
            resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        attempt.expect_exit(2, "; make room or repair the disk, and go on with --resume")
        return
    filler = run.disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    attempt.expect_exit(2, "; make room or repair the disk, and go on with --resume")
    filler.unlink()


FAULTS: dict[str, Callable[[RestartedRun, Attempt], None]] = {
    "kill -9 of a rank": kill_a_rank,
    "SIGTERM": terminate,
    "full disk": fill_the_disk,
    "truncated checkpoint": truncate_the_newest,
    "kill -9 of the job": kill_the_job,
}


@contextmanager
def small_disk(mount: Path, size: int) -> Iterator[Path | None]:
    """A tmpfs of `size` bytes, in a mount namespace that ends with this program; None where that is refused."""
    mount.mkdir(parents=True)
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && echo mounted && exec cat'
    if not (unshare := shutil.which("unshare")):
        yield None
        return
    command, pipe = [unshare, "-Urm", "sh", "-c", script, str(mount)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as holder:
        assert holder.stdout is not None
        mounted = holder.stdout.readline() == b"mounted\n"
        yield Path(f"/proc/{holder.pid}/root{mount.absolute()}") if mounted else None
