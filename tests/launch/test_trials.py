"""Trials as jobs of Slurm, whose commands are stand-ins: jobs are processes that outlive what submitted them.

What they run stands in for `cetnet train`: it writes what trials are judged by.
"""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from cetnet.launch import trials
from cetnet.launch.cli import app
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.launcher import CETNET
from tests.data import write_dataset
from tests.launch.conftest import SRUN
from tests.waiting import until

SBATCH = """#!/bin/bash
job=$(($(ls queue/*.sh 2>/dev/null | wc -l) + 1))
cp "${@: -1}" queue/$job.sh
echo RUNNING >queue/$job.state
export PATH="$(dirname "$0"):$PATH"
SLURM_JOB_ID=$job SLURM_JOB_NUM_NODES=1 setsid bash -c "
    bash queue/$job.sh && state=COMPLETED || state=FAILED
    echo \\$state >queue/$job.new; mv queue/$job.new queue/$job.state" >queue/$job.log 2>&1 </dev/null &
echo $job
"""
SACCT = """#!/bin/bash
echo "${@: -1}|train-0|$(cat "queue/${@: -1}.state")|node1"
"""
REFUSES = """#!/bin/bash
exit 1
"""
STEPS = 16
TRAIN = f"""#!{sys.executable}
import json, os, sys, time
from pathlib import Path

arguments = sys.argv[sys.argv.index("cetnet", sys.argv.index("-m") + 1) + 1:]
settings = dict(each.split("=", 1) for each in arguments if "=" in each)
folder, lr = Path(settings["run_dir"]), float(settings.get("optimizer.dense.lr", "0.05"))
folder.mkdir(exist_ok=True)
end = int(arguments[arguments.index("--pause-at") + 1]) if "--pause-at" in arguments else {STEPS}
file = folder / "metrics.jsonl"
done = len(file.read_text().splitlines()) if file.exists() else 0
for step in range(done + 1, end + 1):
    if lr > 1:
        Path(os.environ["CETNET_FAILURE_FILE"]).write_text("lr: too large\\n")
        sys.exit(2)
    if Path("die").exists():
        sys.exit(1)
    while step == 4 and Path("hold").exists():
        time.sleep(0.05)
    sums = {{"weight": 64 * step, "positive": 32 * step, "loss": {{"fused": 64 * step * lr}}}}
    with file.open("a") as lines:
        print(json.dumps({{"kind": "train", "step": step, "seconds": step, "progressive": sums}}), file=lines)
if end == {STEPS}:
    result = {{"rows": 64 * end, "seconds": 1.0, "rows_per_second": 1.0, "parameters": {{"tables": 1, "dense": 1}}}}
    splits = {{"validation": {{"rows": 64, "ne/fused": lr}}}}
    (folder / "result.json").write_text(json.dumps({{**result, "splits": splits}}))
"""


@pytest.fixture
def study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str, str], Path]
) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .torchxconfig of whoever runs the tests
    monkeypatch.setattr(trials, "_LAG", 0.0)
    (tmp_path / "queue").mkdir()
    programs = {
        "sbatch": SBATCH,
        "sacct": SACCT,
        "squeue": REFUSES,
        "sinfo": REFUSES,
        "srun": SRUN,
        "torchrun": TRAIN,
    }
    for name, text in programs.items():
        program(name, text)
    write_dataset(Path("data"), {"train": 64 * STEPS, "validation": 64})
    data = {"path": "data", "batch_size": 64}
    base = {"data": data, "model": {"components": {"dnn": {"kind": "dnn"}}}}
    Path("base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    yield
    Path("hold").unlink(missing_ok=True)


def write(tune: dict[str, Any]) -> None:
    content = {
        "name": "small",
        "base": "base.yaml",
        "nproc": 1,
        "seeds": [1],
        "baseline": "dnn",
        "variants": {"dnn": {}},
        "tune": tune,
    }
    Path("study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


COMMAND = [
    "tune",
    "study.yaml",
    "-s",
    "slurm",
    "-cfg",
    "partition=main,time=60",
    "--jobs",
    "2",
    "--poll",
    "0.2",
]
HALVING = {"trials": 4, "eta": 2, "rungs": 2, "shared": {"optimizer.dense.lr": {"low": 0.01, "high": 1.0}}}


def launch(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*COMMAND, *arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def table() -> list[dict[str, str]]:
    with Path("runs/small/tune/trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def submitted() -> list[str]:
    """Which trial each job trained, and until which step, in the order of submission."""
    jobs = sorted(Path("queue").glob("*.sh"), key=lambda file: int(file.stem))
    texts = [job.read_text(encoding="utf-8") for job in jobs]
    return [
        f"{text.partition('/tune/dnn/trial00')[2][0]} "
        + (text.partition("--pause-at ")[2].split()[0] if "--pause-at" in text else "end")
        for text in texts
    ]


@pytest.mark.usefixtures("study")
def test_begun_again_after_a_kill_it_finds_its_jobs_and_asks_those_again_that_died() -> None:
    write(HALVING)
    assert launch("--dryrun").count("#SBATCH") == 1
    assert not Path("runs").exists()

    Path("hold").touch()
    with subprocess.Popen([*CETNET, "launch", *COMMAND]) as killed:
        held = "runs/small/tune/dnn/trial00{}/seed1001/metrics.jsonl"
        until(lambda: all(Path(held.format(number)).exists() for number in (0, 1)), "two trials under way")
        killed.kill()
    assert submitted() == ["0 8", "1 8"]
    # One of the jobs dies, as of a node that fails; the other goes on.
    [trainer] = (
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if {sys.executable, "run_dir=runs/small/tune/dnn/trial001/seed1001"}
        <= set(process.info["cmdline"] or [])
    )
    os.kill(trainer, signal.SIGKILL)
    until(lambda: Path("queue/2.state").read_text(encoding="utf-8") == "FAILED\n", "job 2 failed")
    Path("hold").unlink()
    shown = launch()

    rows = table()
    values = [float(row["optimizer.dense.lr"] or 0.05) for row in rows]
    best = sorted(range(4), key=lambda number: values[number])
    assert [rows[number]["state"] for number in best] == ["chosen", "finished", *["stopped at rung 1"] * 2]
    assert [row["rows"] for row in rows] == ["1024" if number in best[:2] else "512" for number in range(4)]
    rung, end = [f"{number} 8" for number in range(4)], [f"{number} end" for number in best[:2]]
    assert sorted(submitted()) == sorted([*rung, "1 8", *end])
    assert "dnn, trial 1, seed 1001: slurm://torchx/3, submitted" in shown
    chosen = yaml.safe_load(Path("runs/small/tune/variants.yaml").read_text(encoding="utf-8"))
    assert chosen["dnn"].get("optimizer.dense.lr", 0.05) == values[best[0]]
    assert "chosen on validation" in launch()
    assert len(submitted()) == 7


@pytest.mark.usefixtures("study")
def test_a_trial_that_says_twice_why_it_fails_is_left_out_and_one_that_only_dies_ends_the_command() -> None:
    shared = {"optimizer.dense.lr": {"choices": [0.5, 2.0]}}
    write({"trials": 2, "rungs": 1, "sampler": "grid", "shared": shared})
    Path("die").touch()
    with pytest.raises(
        UserError, match=r"trial 0, seed 1001 failed \(3 jobs ended at step 0: failed, without a"
    ):
        launch()

    Path("die").unlink()
    launch()
    rows = table()
    assert [row["state"] for row in rows] == ["chosen", "failed"]
    assert rows[1]["why it failed"].startswith("twice: lr: too large; its log: torchx log slurm://torchx/")
