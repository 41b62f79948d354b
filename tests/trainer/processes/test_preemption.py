"""Jobs that are told to stop, or lose a process: real commands, real signals, and every row trained exactly once.

The recorder holds each rank at step 25, until it is released.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import cetnet.trainer.scoring
import cetnet.trainer.train
from cetnet.models.batch import Batch
from cetnet.models.cetnet import Predictions
from cetnet.trainer.check_run import check_run
from cetnet.trainer.config import RunConfig
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.session import Session, run_pipeline
from cetnet.trainer.train import train
from tests.data import write_dataset
from tests.paths import ROOT
from tests.processes import early_stopping_settings, run_processes, run_settings
from tests.trainer.checkpoint.test_resume import rows_of, train_with_ledger
from tests.waiting import until

ROWS, STEPS, HOLD_AT = 3190, 50, 25
CETNET, TORCHRUN = ["-P", "-m", "cetnet"], ["-m", "torch.distributed.run", "--standalone"]
UNDER_TORCHRUN = ["--no-python", str(Path(sys.executable).with_name("cetnet"))]


@dataclass
class Job:
    """A command under way in `folder`, which has its run and its log."""

    folder: Path
    process: subprocess.Popen[bytes]
    ledger: Path

    def wait_until_held(self, *ranks: int) -> list[int]:
        """Process ids of the ranks, which are in the midst of training."""
        held = [self.ledger / f"held-{rank}" for rank in ranks]

        def are_held() -> bool:
            assert self.process.poll() is None, self.log
            return all(file.exists() and file.read_text() for file in held)

        until(are_held, "held")
        # A checkpoint is written in the background.
        until((self.folder / "run/checkpoints/step-000000020").exists, "checkpoint of step 20")
        return [int(file.read_text()) for file in held]

    def release(self) -> None:
        (self.ledger / "release").touch()

    def wait(self) -> int:
        return self.process.wait(400)

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    @property
    def checkpoints(self) -> list[int]:
        return sorted(
            int(path.name.removeprefix("step-")) for path in (self.folder / "run/checkpoints").iterdir()
        )

    def rows(self, attempt: int, steps: int = STEPS) -> list[int]:
        """Rows that an attempt trained in its first steps, on all ranks."""
        files = self.ledger.glob(f"rows-{attempt}-*")
        lines = [line for file in files for line in file.read_text().splitlines()[:steps]]
        return [row for line in lines for row in json.loads(line) if row >= 0]


def settings(data: Path, run_dir: Path, **sections: Any) -> dict[str, Any]:
    model = {"components": {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [16]}}}
    return run_settings(data, run_dir, model=model, **({"checkpoint": {"every_steps": 10}} | sections))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_dataset(path, {"train": ROWS, "test": 200}, row_group_size=150)
    return path


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Result of a run that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with process_group("cpu") as processes:
        train(check_run(RunConfig.model_validate(settings(data, run)), 1), processes)
    return json.loads((run / "result.json").read_text())


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(*command: str, ledger: str = "ledger", every_steps: int = 10, **env: str) -> Job:
        """`python COMMAND` where `train.yaml` is, an experiment that is held at step 25."""
        (tmp_path / ledger).mkdir(exist_ok=True)
        (tmp_path / "train.yaml").write_text(
            yaml.safe_dump(settings(data, tmp_path / "run", checkpoint={"every_steps": every_steps}))
        )
        python_path = f"{ROOT / 'benchmarks/chaos/recorder'}:{ROOT}"
        recorder = {"PYTHONPATH": python_path, "LEDGER": str(tmp_path / ledger), "HOLD_AT": str(HOLD_AT)}
        with (tmp_path / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=tmp_path,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | recorder | env,
                stdout=log,
                stderr=log,
            )
        jobs.append(Job(tmp_path, process, tmp_path / ledger))
        return jobs[-1]

    yield start
    for job in jobs:
        job.process.terminate()  # torchrun ends its processes too
        job.process.wait(60)


def assert_as_if_nothing_had_happened(job: Job, whole: dict[str, Any]) -> None:
    result = json.loads((job.folder / "run/result.json").read_text())
    assert result["train"] == pytest.approx(whole["train"], abs=1e-6)
    assert result["splits"]["test"]["ne/fused"] == pytest.approx(
        whole["splits"]["test"]["ne/fused"], abs=1e-6
    )
    lines = [json.loads(line) for line in (job.folder / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))


def test_told_to_stop_it_saves_and_says_try_again(
    start: Callable[..., Job],
    data: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = start(*CETNET, "train", "train.yaml", "--nproc", "2")
    job.wait_until_held(0, 1)
    job.process.send_signal(signal.SIGTERM)  # the launcher passes it on
    until(lambda: "SIGTERM: stopping after this step" in job.log, job.log)
    job.release()
    assert job.wait() == os.EX_TEMPFAIL
    stopped_at = job.checkpoints[-1]
    assert HOLD_AT < stopped_at < STEPS
    assert f"stopped by SIGTERM at step {stopped_at}, which is saved" in job.log
    assert "Traceback" not in job.log

    # On another number of processes, saving by the clock.
    monkeypatch.setattr(cetnet.trainer.train, "run_pipeline", run_pipeline)  # put back afterwards
    (tmp_path / "after").mkdir()
    by_the_clock = settings(data, job.folder / "run", checkpoint={"every_minutes": 1e-6, "keep": 100})
    with process_group("cpu") as processes:
        train_with_ledger(processes, by_the_clock, tmp_path / "after", stopped_at, None)
    assert Counter(job.rows(0, stopped_at)) + rows_of(tmp_path / "after", STEPS) == Counter(range(ROWS))
    assert_as_if_nothing_had_happened(job, whole)
    assert len([step for step in job.checkpoints if stopped_at < step < STEPS]) > 2


def test_told_to_stop_it_tries_a_save_that_has_failed_once_more(start: Callable[..., Job]) -> None:
    job = start(*CETNET, "train", "train.yaml", "--nproc", "2", every_steps=5)
    rank, _ = job.wait_until_held(0, 1)
    # Where rank 0 alone is to write a file.
    (job.folder / "run/checkpoints/.step-000000025.tmp/trainer.json").mkdir(parents=True)
    os.kill(rank, signal.SIGTERM)
    until(lambda: "SIGTERM: stopping after this step" in job.log, job.log)
    job.release()
    assert job.wait() == os.EX_TEMPFAIL, job.log
    assert "trying once more" in job.log
    assert "step-000000025: cannot be written" in " ".join(job.log.split())
    assert (job.folder / "run/checkpoints/step-000000026").exists()


def test_a_lost_process_is_started_again_and_resumes_by_itself(
    start: Callable[..., Job], whole: dict[str, Any]
) -> None:
    command = ["--nproc-per-node", "2", "--max-restarts", "2", *UNDER_TORCHRUN, "train", "train.yaml"]
    job = start(*TORCHRUN, *command)
    _, second = job.wait_until_held(0, 1)
    job.release()
    os.kill(second, signal.SIGKILL)
    assert job.wait() == 0
    (resumed_at,) = [int(line.split()[0]) for line in job.log.split("resumed at step ")[1:]]
    assert Counter(job.rows(0, resumed_at) + job.rows(1)) == Counter(range(ROWS))
    assert_as_if_nothing_had_happened(job, whole)


def test_a_node_joins_and_is_lost(start: Callable[..., Job], whole: dict[str, Any]) -> None:
    """Two torchruns are the nodes: the first goes on with the second from where it was, and alone from step 30."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        endpoint = f"localhost:{probe.getsockname()[1]}"
    conf = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
    node = [
        *("-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "elastic", "--rdzv-conf", conf),
        *("--local-addr", "localhost", *UNDER_TORCHRUN, "train", "train.yaml"),
    ]
    together = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}
    first = start(*node, **together)
    first.wait_until_held(0)
    second = start(*node, ledger="second", **together, HOLD_AT="8")
    until(lambda: "SIGTERM: stopping after this step" in first.log, first.log)
    first.release()
    until(lambda: list(second.ledger.glob("held-*")), first.log)
    (joined_at,) = [int(line.split()[0]) for line in first.log.split("resumed at step ")[1:]]
    assert HOLD_AT < joined_at < 30 < joined_at + 8
    until((first.folder / "run/checkpoints/step-000000030").exists, "checkpoint of step 30")
    (held,) = second.ledger.glob("held-*")
    second.process.kill()
    os.kill(int(held.read_text()), signal.SIGKILL)
    second.process.wait()
    assert first.wait() == 0, first.log
    assert first.log.split("resumed at step ")[2].startswith("30 ")
    # torchrun doesn't count the start with another node; the first node's rank is 0 then, too, or becomes 1.
    files = sorted(first.ledger.glob("rows-0-*"))
    until_30 = [line for file in files for line in file.read_text().splitlines()][:30]
    rows = [row for line in until_30 for row in json.loads(line)] + second.rows(0, 30 - joined_at)
    assert Counter(rows + first.rows(1)) == Counter(range(ROWS))
    assert_as_if_nothing_had_happened(first, whole)


@pytest.mark.parametrize(
    ("before", "code"), [("signals.heeded.set()", 128 + signal.SIGUSR1), ("", os.EX_TEMPFAIL)]
)
def test_a_second_signal_leaves_at_once_and_before_the_first_step_one_does(before: str, code: int) -> None:
    """Also while the main thread waits in a call that no signal ends, as it does for a rank that hangs."""
    program = f"""
from datetime import timedelta
from torch.distributed import HashStore
from cetnet.trainer.processes.signals import StopSignals

with StopSignals() as signals:
    {before}
    print("waiting", flush=True)
    HashStore().wait(["never"], timedelta(days=1))
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"

        def told() -> bool:
            process.send_signal(signal.SIGUSR1)
            return process.poll() is not None

        until(told, "gone")
    assert process.returncode == code


def train_and_leave_an_evaluation(processes: Processes, whole: dict[str, Any], cut: dict[str, Any]) -> None:
    """Train one run, and another that is told to stop in its third evaluation, and resumed."""
    batches_scored = 0

    def interrupting(session: Session, batches: Iterable[Batch]) -> Iterator[Predictions]:
        nonlocal batches_scored
        for predictions in run_pipeline(session, batches):
            batches_scored += 1
            if batches_scored == 9:  # each has 4
                os.kill(os.getpid(), signal.SIGUSR1)
            yield predictions

    train(check_run(RunConfig.model_validate(whole), processes.world_size), processes)
    cetnet.trainer.scoring.run_pipeline = interrupting
    with pytest.raises(SystemExit, match=str(os.EX_TEMPFAIL)):
        train(check_run(RunConfig.model_validate(cut), processes.world_size), processes)
    train(check_run(RunConfig.model_validate(cut), processes.world_size, resume=True), processes)


def test_an_evaluation_that_was_left_comes_first(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, {"train": 640, "validation": 256, "test": 200}, row_group_size=150)

    def run(name: str) -> dict[str, Any]:
        few = settings(data, tmp_path / name)
        kept = {key: few[key] for key in ("model", "checkpoint")}
        return early_stopping_settings(data, tmp_path / name, **kept)

    run_processes(train_and_leave_an_evaluation, 1, run("whole"), run("cut"))
    whole, cut = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("whole", "cut"))
    assert cut["steps"] == whole["steps"]
    assert cut["splits"]["test"] == pytest.approx(whole["splits"]["test"], abs=1e-6)

    def evaluations(run: str) -> list[int]:
        lines = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        return [line["step"] for line in lines if line["kind"] == "eval"]

    assert evaluations("cut") == evaluations("whole")
