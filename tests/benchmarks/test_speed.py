"""The driver on contenders that only write lines; the models that are compared are the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cetnet.benchmarks.speed.alternate import Contender, ContenderError, Line, measure, rate
from cetnet.benchmarks.speed.comparisons import CONFIGS, comparisons
from cetnet.benchmarks.speed.data import NUM_DENSE, NUM_IDS, clicks
from cetnet.benchmarks.speed.peers.columns import read_columns
from cetnet.benchmarks.speed.peers.dcnv2 import flops_per_sample
from cetnet.benchmarks.speed.peers.environment import link_cetnet
from cetnet.benchmarks.speed.peers.plain import PlainDCNv2
from cetnet.benchmarks.speed.peers.torchrec_loop import BareDCNv2
from cetnet.benchmarks.speed.results import markdown
from cetnet.models.component import Inputs
from cetnet.trainer.config import load_config
from cetnet.trainer.data.dataset import Dataset, Piece
from cetnet.trainer.session import build_model
from tests.data import write_dataset

# Steps every 10 ms, and says so; then its child sleeps in a session of its own, as a launcher's do.
FAKE = """
import json, subprocess, sys, time
path, per_line = sys.argv[1], int(sys.argv[2])
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(child.pid, flush=True)
step = 0
with open(path, "a", buffering=1) as file:
    while True:
        time.sleep(0.01)
        step += 1
        if step % per_line == 0:
            file.write(json.dumps({"step": step, "seconds": time.perf_counter()}) + "\\n")
            file.write(json.dumps({"step": step, "auc": 0.5}) + "\\n")
"""


def fake(path: Path, name: str, per_line: int = 1) -> Contender:
    progress = path / f"{name}.jsonl"
    return Contender(name, (sys.executable, "-c", FAKE, str(progress), str(per_line)), progress, 7.0)


def wait_until_gone(logs: Path) -> None:
    """Wait for the end of the children that the contenders' logs name."""
    children, deadline = [int(log.read_text()) for log in logs.iterdir()], time.monotonic() + 30
    assert children
    while any(map(is_alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def brute_rate(lines: Sequence[Line], rows: float, longest: float) -> float:
    """Over all pairs that end at the last line and are no farther apart than the window: the farthest."""
    best = 0.0
    result = 0.0
    for line in lines:
        apart = lines[-1].seconds - line.seconds
        if best < apart <= longest:
            best, result = apart, rows * (lines[-1].step - line.step) / apart
    return result


def test_rate_of_a_window() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        seconds = rng.exponential(0.3, 12).cumsum()
        lines = [
            Line(int(s), float(t)) for s, t in zip(rng.integers(1, 9, 12).cumsum(), seconds, strict=True)
        ]
        longest = float(rng.uniform(seconds[-1] - seconds[-2], 2 * seconds[-1]))
        assert rate(lines, 5.0, longest) == pytest.approx(brute_rate(lines, 5.0, longest))


def test_line_from_before_the_stop_is_left_out() -> None:
    lines = [Line(10, 3.0), Line(20, 61.0), Line(30, 62.0), Line(40, 63.0)]  # stopped for nearly a minute
    assert rate(lines, 1.0, 2.5) == pytest.approx(10)


def test_contenders_take_turns_and_are_killed(tmp_path: Path) -> None:
    contenders = [fake(tmp_path, "a"), fake(tmp_path, "b", per_line=3)]
    rates = measure(contenders, rounds=2, seconds=0.3, logs=tmp_path / "logs")
    assert [len(of_one) for of_one in rates.values()] == [2, 2]
    # A clock that ran on while it was stopped would show as far fewer rows a second, and never as more.
    assert all(rate <= 7 / 0.01 for of_one in rates.values() for rate in of_one)
    stamps = {
        c.name: [
            json.loads(line)["seconds"] for line in c.progress.read_text().splitlines() if "seconds" in line
        ]
        for c in contenders
    }
    second_start = stamps["b"][0]
    # "a" was stopped while "b" made its first steps, the warm-up.
    assert not [t for t in stamps["a"] if second_start <= t <= stamps["b"][5]]
    wait_until_gone(tmp_path / "logs")


def test_contender_that_fails_is_named(tmp_path: Path) -> None:
    progress = tmp_path / "x.jsonl"
    broken = Contender("broken", (sys.executable, "-c", "raise SystemExit('no such data')"), progress, 1)
    good = fake(tmp_path, "good")
    with pytest.raises(ContenderError, match=r"broken: exit code 1 \(no such data\); see .*broken.log"):
        measure([good, broken], rounds=1, seconds=0.1, logs=tmp_path / "logs")
    (tmp_path / "logs" / "broken.log").unlink()
    wait_until_gone(tmp_path / "logs")


def test_sigterm_kills_stopped_contenders(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cetnet.benchmarks.speed.alternate import Contender, measure\n"
        "path, fake = Path(sys.argv[1]), sys.argv[2]\n"
        "files = {name: path / f'{name}.jsonl' for name in 'ab'}\n"
        "contenders = [Contender(n, (sys.executable, '-c', fake, str(f), '1'), f, 1) for n, f in files.items()]\n"
        "measure(contenders, 1000, 0.1, path / 'logs', print)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-uc", program, str(tmp_path), FAKE], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    while not parent.stdout.readline().startswith("round 1"):
        assert parent.poll() is None
    parent.send_signal(signal.SIGTERM)
    parent.stdout.read()
    assert parent.wait(30) == 128 + signal.SIGTERM
    wait_until_gone(tmp_path / "logs")


def test_contenders_train_the_same_model() -> None:
    schema, config = clicks(50), load_config(CONFIGS / "dcnv2.yaml")
    ours, plain, bare = (
        build_model(config, schema, "cpu"),
        PlainDCNv2(schema),
        BareDCNv2(schema, False, torch.device("cpu")),
    )
    counts = {sum(p.numel() for p in model.parameters()) for model in (ours, plain, bare)}
    assert len(counts) == 1
    tokens, dense = torch.zeros(8, NUM_IDS, 16, requires_grad=True), torch.zeros(8, NUM_DENSE)
    nothing = torch.zeros(8, 0)
    with FlopCounterMode(display=False) as counter:
        inputs = Inputs(tokens, torch.zeros(8, 0, 1, 16), nothing, dense, nothing)
        ours.towers["dcnv2"].component(inputs).logit.sum().backward()
    assert counter.get_total_flops() / 8 == flops_per_sample(NUM_IDS, NUM_DENSE)


def test_columns_in_memory_are_the_readers(tmp_path: Path) -> None:
    schema = write_dataset(tmp_path)
    data = Dataset(tmp_path, "train")
    rows = data.read([Piece(group, 0, group.num_rows) for group in data.row_groups])
    columns = read_columns(tmp_path, 150)
    for feature, ids in zip(schema.of_kind("categorical"), rows.ids, strict=True):
        assert columns[feature.name].tolist() == ids[:150].tolist()
    lists = [f for f in schema.id_features if f.kind != "categorical"]
    for feature, (ids, offsets) in zip(lists, rows.lists, strict=True):
        for row in range(150 if feature.kind == "sequence" else 0):
            expected = ids[offsets[row] : offsets[row + 1]].tolist()
            padded = [0] * (feature.max_length - len(expected)) + expected
            assert columns[feature.name][row].tolist() == padded
    for feature, numbers in zip(schema.dense_features, rows.numbers[2:], strict=True):
        assert columns[feature.name].tolist() == numbers[:150].tolist()


def test_an_environment_without_our_libraries_imports_what_its_contender_needs(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "peers")], check=True)
    link_cetnet(tmp_path / "peers")
    link_cetnet(tmp_path / "peers")  # it may be there
    program = (
        "import importlib.util, sys; from pathlib import Path\n"
        "from cetnet.benchmarks.speed.step_log import StepLog; StepLog(Path(sys.argv[1])).step()\n"
        "sys.exit(importlib.util.find_spec('torchrec') is not None)"
    )
    python = [str(tmp_path / "peers/bin/python"), "-P", "-c", program, str(tmp_path / "steps.jsonl")]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(python, env=env, cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "steps.jsonl").read_text())["step"] == 1


def test_table_says_what_is_reached_and_what_is_missing(tmp_path: Path) -> None:
    every = comparisons(tmp_path)
    peers = next(c for c in every if c.name == "peers-22m")
    rates = {c.name: [10.0, 30.0, 20.0] for c in peers.contenders}
    rates["FuxiCTR"] = [1.0, 1.0, 1.0]
    results = {
        "machine": {"cpu": "some", "cores": "2", "torch": "2", "started": "now", "command": "this"},
        "rounds": 3,
        "seconds": 1.0,
        "comparisons": {"peers-22m": {"rates": rates, "missing": {}}},
    }
    assert "21.6 M rows | >= 20 | 20.00 (10.00..30.00) | yes |" in markdown(results, every)
    del rates["FuxiCTR"]
    results["comparisons"]["peers-22m"]["missing"] = {"FuxiCTR": "could not be installed"}
    text = markdown(results, every)
    assert "| not measured: could not be installed |  |" in text
    assert "| the same / bare TorchRec, bf16 |  | 1.00 (1.00..1.00) |  |" in text


def test_share_is_of_the_lower_limit(tmp_path: Path) -> None:
    """A row needs 10 MFLOP, and 78 reads and writes of table rows, by hand."""
    results = {
        "machine": {"cpu": "some", "cores": "2", "torch": "2", "started": "now", "command": "this"},
        "rounds": 1,
        "seconds": 1.0,
        "comparisons": {"peers-2m": {"rates": {"ours fp32": [50.0], "ours bf16": [50.0]}, "missing": {}}},
        "roofline": {
            "GFLOP/s fp32, small": 0.1,
            "GFLOP/s fp32, large": 0.5,
            "GFLOP/s bf16, large": 100.0,
            "M rows/s of 64 bytes": 78e-4,
            "MFLOP per row of DCNv2, forward and backward": 10.0,
        },
    }
    text = markdown(results, comparisons(tmp_path))
    assert "ours fp32, share of the lower limit | 1.00 |" in text  # of 50 rows/s by arithmetic
    assert "ours bf16, share of the lower limit | 0.50 |" in text  # of 100 rows/s by reads


def test_every_comparison_names_what_it_has() -> None:
    for comparison in comparisons(Path("work")):
        names = {contender.name: 2.0 for contender in comparison.contenders}
        assert len(names) == len(comparison.contenders)
        for ratio in comparison.ratios:
            assert ratio.of(names) > 0
        for contender in comparison.contenders:
            if contender.command[3] == "cetnet":
                _, _, _, _, train, config, *overrides, _, _ = contender.command
                settings = load_config(Path(config), overrides)
                assert train == "train"
                assert settings.data.batch_size == contender.rows_per_step
                assert settings.run_dir / "metrics.jsonl" == contender.progress
                assert settings.data.path.name in comparison.data
