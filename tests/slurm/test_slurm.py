"""Training jobs on a real Slurm cluster, through TorchX as users submit them: `make test-slurm` starts one.

Each job trains 50 steps on two nodes, one process each. The recorder holds it at step 25, its last checkpoint being
of step 20, until it has been interrupted.
"""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data import write_dataset
from tests.paths import ROOT
from tests.processes import run_settings
from tests.waiting import until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

ROWS, STEPS, HOLD_AT = 3190, 50, 25
RECORDER = str(ROOT / "benchmarks" / "chaos" / "recorder")


def call(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a program that must succeed; returns what it printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | {"PATH": path} | env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@dataclass
class Job:
    """A submitted job; `folder` has its run, its ledger and Slurm's logs."""

    folder: Path
    handle: str

    @property
    def id(self) -> str:
        return self.handle.rpartition("/")[2]

    def torchx(self, command: str, *arguments: str) -> str:
        return call("torchx", command, *arguments, self.handle, cwd=self.folder)

    def state(self) -> str:
        return re.findall(r"State: (\w+)", self.torchx("status"))[0]

    def slurm(self, key: str) -> str:
        """A field of `scontrol show job`."""
        shown = call("scontrol", "show", "job", self.id, cwd=self.folder)
        return re.findall(rf"\b{key}=(\S*)", shown)[0]

    def wait_for(self, state: str) -> None:
        until(lambda: self.state() == state, f"{self.handle} {state}")

    def wait_until_held(self) -> None:
        """Both ranks are in the midst of training."""
        held = [self.folder / "ledger" / f"held-{rank}" for rank in (0, 1)]
        until(lambda: all(file.exists() for file in held), f"{self.handle} at step {HOLD_AT}")
        # A checkpoint is written in the background.
        checkpoint = self.folder / "run" / "checkpoints" / "step-000000020"
        until(checkpoint.exists, f"{checkpoint} written")

    def release(self) -> None:
        (self.folder / "ledger" / "release").touch()

    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "run" / "result.json").read_text())

    def environment(self) -> dict[str, Any]:
        return json.loads((self.folder / "run" / "environment.json").read_text())

    def rows(self, attempt: int, steps: int = STEPS) -> Counter[int]:
        """Rows that an attempt trained in its first steps, on both ranks."""
        files = [self.folder / "ledger" / f"rows-{attempt}-{rank}" for rank in (0, 1)]
        lines = [line for file in files for line in file.read_text().splitlines()[:steps]]
        return Counter(row for line in lines for row in json.loads(line) if row >= 0)


Submit = Callable[..., Job]


@pytest.fixture(scope="module")
def submit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submit]:
    folder = tmp_path_factory.mktemp("slurm")
    write_dataset(folder / "data", {"train": ROWS, "test": 200}, row_group_size=150)
    handles: list[Job] = []

    def submit(name: str, *options: str, hold: bool = True) -> Job:
        (folder / name / "ledger").mkdir(parents=True)
        settings = run_settings(folder / "data", folder / name / "run", checkpoint={"every_steps": 10})
        (folder / name / "config.yaml").write_text(yaml.safe_dump(settings))
        said = call(
            *("torchx", "run", "-s", "slurm", "-cfg", "partition=low,time=10", "cetnet.train"),
            *("--config", "config.yaml", "-j", "2x1", "--cpu", "1", *options),
            cwd=folder / name,
            GLOO_SOCKET_IFNAME="lo",
            PYTHONPATH=os.pathsep.join([RECORDER, *filter(None, [os.environ.get("PYTHONPATH")])]),
            LEDGER=str(folder / name / "ledger"),
            HOLD_AT=str(HOLD_AT if hold else STEPS + 1),
        )
        handles.append(Job(folder / name, said.split()[-1]))
        return handles[-1]

    yield submit
    subprocess.run(["scancel", *(job.id for job in handles)], check=False)


@pytest.fixture(scope="module")
def whole(submit: Submit) -> Job:
    """A job that nothing interrupts."""
    job = submit("whole")
    job.wait_until_held()
    assert job.state() == "RUNNING"
    assert [state for _, state in re.findall(r"\w+\[([01])\]:(\w+)", job.torchx("status"))] == ["RUNNING"] * 2
    job.release()
    job.wait_for("SUCCEEDED")
    return job


def assert_trained_once(job: Job, whole: Job) -> None:
    """The job was started again once, resumed, and every row was trained exactly once."""
    assert job.environment()["slurm"]["SLURM_RESTART_COUNT"] == "1"
    log = job.torchx("log")
    assert "step 10/50" in log  # of the first attempt
    resumed_at = int(re.findall(r"resumed at step (\d+)", log)[-1])
    assert resumed_at == 20
    assert job.rows(attempt=0, steps=resumed_at) + job.rows(attempt=1) == Counter(range(ROWS))
    assert job.result()["rows"] == ROWS
    assert job.result()["train"] == pytest.approx(whole.result()["train"], abs=1e-6)
    for output in ("fused", "interformer", "dhen", "dcnv2"):
        ne = f"ne/{output}"
        assert job.result()["splits"]["test"][ne] == pytest.approx(
            whole.result()["splits"]["test"][ne], abs=1e-6
        )


def test_submit_watch_and_read(whole: Job) -> None:
    assert whole.result()["steps"] == STEPS
    assert whole.rows(attempt=0) == Counter(range(ROWS))
    assert "step 50/50" in whole.torchx("log")
    assert f"{whole.handle}  SUCCEEDED" in call("torchx", "list", "-s", "slurm", cwd=whole.folder)
    environment = whole.environment()
    assert environment["world_size"] == 2
    assert environment["torchx"]["TORCHX_JOB_ID"] == whole.handle
    assert environment["slurm"]["SLURM_JOB_ID"] == whole.id


def test_cancel(submit: Submit) -> None:
    job = submit("cancelled")
    job.wait_until_held()
    job.torchx("cancel")
    job.wait_for("CANCELLED")
    until(lambda: not call("squeue", "-h", "-j", job.id, cwd=job.folder), "off the queue")
    for rank in (0, 1):
        process = Path("/proc") / (job.folder / "ledger" / f"held-{rank}").read_text()
        until(lambda process=process: not (process / "exe").exists(), f"rank {rank} gone", 60)
    assert not (job.folder / "run" / "result.json").exists()


def test_preempted_by_a_job_of_higher_priority(submit: Submit, whole: Job) -> None:
    job = submit("preempted", "--max_retries", "1")
    job.wait_until_held()
    # Wants all of both nodes; srun returns when it has run.
    call("srun", "-p", "high", "-N2", "-c4", "sleep", "1", cwd=job.folder)
    assert job.slurm("Restarts") == "1"
    job.release()
    job.wait_for("SUCCEEDED")
    assert_trained_once(job, whole)


def test_a_node_dies(submit: Submit, whole: Job) -> None:
    job = submit("node-died", "--max_retries", "1")
    job.wait_until_held()
    call("scontrol", "update", "nodename=node2", "state=down", "reason=test", cwd=job.folder)
    job.wait_for("PENDING")
    time.sleep(10)  # a requeued job may start after 5 seconds, were there a node
    assert job.state() == "PENDING"
    call("scontrol", "update", "nodename=node2", "state=resume", cwd=job.folder)
    job.release()
    job.wait_for("SUCCEEDED")
    assert_trained_once(job, whole)


def test_a_rank_dies_on_one_host(submit: Submit, whole: Job) -> None:
    job = submit("rank-died", "--max_retries", "1")
    job.wait_until_held()
    os.kill(int((job.folder / "ledger" / "held-1").read_text()), signal.SIGKILL)
    until(lambda: job.slurm("Restarts") == "1", "started again")
    job.release()
    job.wait_for("SUCCEEDED")
    assert_trained_once(job, whole)


def test_two_jobs_at_once(submit: Submit, whole: Job) -> None:
    jobs = [submit(f"together-{port}", "--rdzv_port", f"{port}") for port in (29501, 29502)]
    for job in jobs:
        job.wait_until_held()
    assert [job.state() for job in jobs] == ["RUNNING", "RUNNING"]
    for job in jobs:
        job.release()
    for job in jobs:
        job.wait_for("SUCCEEDED")
        assert job.rows(attempt=0) == Counter(range(ROWS))
        assert job.result()["train"] == pytest.approx(whole.result()["train"], abs=1e-6)


def test_trials_of_a_tuning(tmp_path: Path) -> None:
    """Killed while its jobs run, it finds them again, asks again what was cancelled, and chooses as processes do."""
    write_dataset(tmp_path / "data")
    base = run_settings(tmp_path / "data", tmp_path / "run")
    del base["run_dir"]
    lr = {"optimizer.dense.lr": {"low": 1e-3, "high": 1e-1, "log": True}}
    study = {
        "name": "small",
        "base": "base.yaml",
        "nproc": 1,
        "seeds": [1],
        "baseline": "all",
        "variants": {"all": {}},
        "tune": {"trials": 2, "eta": 2, "rungs": 2, "shared": lr},
    }
    for name, content in {"base": base, "study": study}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-P", "-m", "cetnet", "launch", "tune", "study.yaml", "-s", "slurm"]
    command += ["-cfg", "partition=low,time=10", "--cpu", "1", "--poll", "1"]
    handles = [tmp_path / f"runs/small/tune/all/trial00{number}/seed1001.job" for number in (0, 1)]
    with subprocess.Popen(command, cwd=tmp_path) as killed:
        until(lambda: all(handle.exists() for handle in handles), "two jobs submitted")
        killed.kill()
    call("scancel", handles[1].read_text().strip().rpartition("/")[2], cwd=tmp_path)
    said = call(*command, cwd=tmp_path)
    assert "all, trial 1, seed 1001: slurm://torchx/" in said

    (tmp_path / "runs").rename(tmp_path / "as-jobs")
    call(*command[:4], "tune", "study.yaml", cwd=tmp_path)
    tables = [(tmp_path / folder / "small/tune/trials.csv").read_text() for folder in ("runs", "as-jobs")]
    columns = [
        [
            [cell for key, cell in row.items() if key != "seconds"]
            for row in csv.DictReader(io.StringIO(table))
        ]
        for table in tables
    ]
    assert columns[0] == columns[1]
