"""Ranks that stop, wait for ever, fail or vanish: the job ends by itself, and says why in one line."""

import multiprocessing
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from cetnet.trainer.cli import main
from tests.data import write_dataset
from tests.faulty import STEPS_DONE
from tests.paths import ROOT
from tests.processes import run_settings

SECONDS = 300  # for what takes no more than some twenty, so that it is a hang
# Only where it must pass: a busy machine's first step may take longer.
TIMEOUT = "training.timeout_minutes=0.2"
RANK_1 = r"rank 1 on \S+ \(process \d+, last seen [a-z ]+ after step [0-4]\)"  # it says so once a second
RESUME = "--resume goes on from the newest checkpoint"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hang")
    write_dataset(folder / "data", {"train": 640, "test": 64})
    model = {"components": {"faulty": {"kind": "tests.faulty.Faulty", "embedding_dim": 4}}}
    settings = run_settings(folder / "data", folder / "run", model=model)
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    return folder / "train.yaml"


@pytest.fixture
def launch(experiment: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    def launch(fault: str, *overrides: str) -> tuple[int, str]:
        """Exit code of `cetnet train --nproc 2`, and what it and its ranks printed."""
        run_dir = f"run_dir={tmp_path / 'run'}"
        command = [
            sys.executable,
            "-m",
            "cetnet",
            "train",
            str(experiment),
            run_dir,
            *overrides,
            "--nproc=2",
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FAULT": fault}
        with subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            log, _ = process.communicate(timeout=SECONDS)
        return process.returncode, log

    return launch


def test_a_stopped_rank_is_named_and_killed(launch: Callable[..., tuple[int, str]]) -> None:
    code, log = launch("stop", TIMEOUT)
    assert code == 1
    (line,) = said(log)
    assert re.search(rf"{RANK_1} has not answered for 0.2 minutes .*; {RESUME}", line)
    assert "Traceback" not in log
    assert not psutil.pid_exists(int(re.search(r"process (\d+)", line)[1]))


@pytest.fixture(scope="module")
def forkserver() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cetnet.trainer.train", "tests.faulty"])
    return context


@pytest.fixture
def train(
    experiment: Path, forkserver: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> Callable[[str], tuple[list[int | None], str]]:
    def train(fault: str) -> tuple[list[int | None], str]:
        """Exit codes of the two ranks, and what they printed together."""
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        log = tmp_path / "log"
        processes = [
            forkserver.Process(target=rank_of_two, args=(rank, port, fault, experiment, log))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        return codes, log.read_text()

    return train


def rank_of_two(rank: int, port: int, fault: str, experiment: Path, log: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "FAULT": fault}
    file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["cetnet", "train", str(experiment), f"run_dir={log.parent / 'run'}"]
    if fault == "wait":
        sys.argv.append(TIMEOUT)
    main()


def said(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("cetnet: ")]


def test_a_rank_that_waits_for_ever_is_named_and_shows_its_stack(train: Callable) -> None:
    codes, log = train("wait")
    assert codes == [1, 1]
    (line,) = said(log)
    named = rf"rank 1 on \S+ \(process \d+, last seen training after step {STEPS_DONE}\)"
    assert re.search(rf"{named} has not got on for 0.2 minutes .*; {RESUME}", line)
    assert log.count("in come_to_grief") == 1
    assert "Traceback" not in log


def test_the_first_error_is_the_only_one_told(train: Callable) -> None:
    codes, log = train("raise")
    assert codes == [1, 1]
    (line,) = said(log)
    (file,) = re.findall(r"cetnet: a fault of the program, RuntimeError: a bug \(traceback: (\S+)\)", line)
    assert "in come_to_grief" in Path(file).read_text(encoding="utf-8")
    Path(file).unlink()
    assert "Traceback" not in log
    assert log.count("Error: ") == 1


def test_a_killed_rank_is_named_by_the_others(launch: Callable[..., tuple[int, str]]) -> None:
    code, log = launch("kill")
    assert code == 1
    (line,) = said(log)
    assert re.search(rf"{RANK_1} is gone \(killed, out of memory\?\); {RESUME}", line)
    assert "Traceback" not in log
