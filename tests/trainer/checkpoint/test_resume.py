"""A run killed in the middle and resumed on another world size ends as if nothing had happened."""

import itertools
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

import cetnet.trainer.train
from cetnet.models.batch import Batch
from cetnet.models.cetnet import Predictions
from cetnet.trainer.check_run import check_run
from cetnet.trainer.config import RunConfig
from cetnet.trainer.draws import seed_draws
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.session import Session, run_pipeline
from cetnet.trainer.train import train
from tests.data import write_dataset
from tests.processes import early_stopping_settings, run_processes, run_settings, train_all

ROWS = 3190
KILLED_AT = 33


def train_with_ledger(
    processes: Processes, settings: dict[str, Any], ledger: Path, first_step: int, killed_at: int | None
) -> None:
    """Train, write down the rows of every step, and die without a word at a given step."""

    step = first_step

    def recorded(session: Session, batches: Iterable[Batch]) -> Iterator[Predictions]:
        nonlocal step
        with (ledger / f"rank-{processes.rank}.txt").open("a") as file:
            for predictions in run_pipeline(session, batches):
                step += 1
                print(json.dumps([step, predictions.row.tolist()]), file=file, flush=True)
                if step == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield predictions

    cetnet.trainer.train.run_pipeline = recorded
    train_all(processes, [settings], resume=first_step > 0)


def rows_of(ledger: Path, last_step: int) -> Counter[int]:
    lines = [json.loads(line) for file in ledger.iterdir() for line in file.read_text().splitlines()]
    return Counter(row for step, rows in lines if step <= last_step for row in rows if row >= 0)


@pytest.mark.timeout(600)
def test_killed_and_resumed_on_another_world_size(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, {"train": ROWS, "test": 200}, row_group_size=150)

    def settings(run: str) -> dict[str, Any]:
        return run_settings(data, tmp_path / run, checkpoint={"every_steps": 10, "keep": 2})

    def ledger(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    run_processes(train_all, 2, [settings("whole")])
    with pytest.raises(ProcessExitedException):
        run_processes(train_with_ledger, 2, settings("killed"), ledger("before"), 0, KILLED_AT)
    checkpoints = sorted((tmp_path / "killed" / "checkpoints").glob("step-*"))
    resumed_from = json.loads((checkpoints[-1] / "trainer.json").read_text())["progress"]["step"]
    assert resumed_from in (20, 30)
    assert not (tmp_path / "killed" / "result.json").exists()
    before = rows_of(tmp_path / "before", resumed_from)

    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    for world_size in (1, 4):
        run = tmp_path / f"resumed-{world_size}"
        shutil.copytree(tmp_path / "killed", run)
        resumed = settings("killed") | {"run_dir": str(run)}
        after = ledger(f"after-{world_size}")
        run_processes(train_with_ledger, world_size, resumed, after, resumed_from, None)
        assert before + rows_of(after, 50) == Counter(range(ROWS))
        result = json.loads((run / "result.json").read_text())
        assert result["train"] == pytest.approx(whole["train"], abs=1e-6)
        for key in ("ne/fused", "ne/interformer", "ne/dhen", "ne/dcnv2"):
            assert result["splits"]["test"][key] == pytest.approx(whole["splits"]["test"][key], abs=1e-6)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 51))


@pytest.mark.timeout(600)
def test_early_stopping_goes_on_where_it_was(tmp_path: Path) -> None:
    """Checkpoints and evaluations fall on the same steps; a resumed run must not forget an evaluation."""
    data = tmp_path / "data"
    write_dataset(data, {"train": 640, "validation": 200, "test": 200}, row_group_size=150)

    def settings(run: str) -> dict[str, Any]:
        return early_stopping_settings(data, tmp_path / run, checkpoint={"every_steps": 10})

    (tmp_path / "ledger").mkdir()
    run_processes(train_all, 1, [settings("whole")])
    with pytest.raises(ProcessExitedException):
        run_processes(train_with_ledger, 1, settings("killed"), tmp_path / "ledger", 0, 35)
    run_processes(train_with_ledger, 1, settings("killed"), tmp_path / "ledger", 30, None)
    whole, killed = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("whole", "killed"))
    assert whole["steps"] < 60
    assert killed["steps"] == whole["steps"]
    assert killed["splits"]["test"] == pytest.approx(whole["splits"]["test"], abs=1e-6)

    def evaluations(run: str) -> list[dict[str, Any]]:
        lines = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == "eval"]

    assert [e["step"] for e in evaluations("killed")] == [e["step"] for e in evaluations("whole")]


def train_whole_and_broken_off(
    processes: Processes, whole: dict[str, Any], broken_off: dict[str, Any]
) -> None:
    train_all(processes, [whole])
    for pause_at in (3, 5):  # where a segment ends, and inside one
        run = check_run(RunConfig.model_validate(broken_off), processes.world_size, resume=pause_at > 3)
        with pytest.raises(SystemExit) as ended:
            train(replace(run, pause_at=pause_at), processes)
        assert ended.value.code == 0
        torch.manual_seed(pause_at)  # as in another process
    train_all(processes, [broken_off], resume=True)


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_drawn_at_random_is_drawn_again(tmp_path: Path, world_size: int) -> None:
    """Dropout in towers, attention and fusion, and the negatives of DIEN's auxiliary loss."""
    data = tmp_path / "data"
    write_dataset(data, {"train": 8 * 64, "validation": 100, "test": 100})
    small = {"embedding_dim": 4, "hidden_units": [8], "dropout": 0.3}
    model = {
        "components": {
            # Not Dice, whose running averages are each rank's own: a checkpoint has those of one.
            "dien": {"kind": "dien", **small, "attention_activation": "relu", "attention_dropout": 0.2},
            "finalmlp": {"kind": "finalmlp", **small, "hidden_units2": [8], "dropout2": 0.3},
        },
    }
    sections: dict[str, Any] = {"model": model, "evaluation": {"splits": ["test"], "every_steps": 3}}
    settings = [run_settings(data, tmp_path / run, **sections) for run in ("whole", "broken-off")]
    if world_size == 1:
        with process_group("cpu") as alone:
            train_whole_and_broken_off(alone, *settings)
    else:
        run_processes(train_whole_and_broken_off, world_size, *settings)
    predicted = [
        pq.read_table(tmp_path / run / "predictions" / "test.parquet") for run in ("whole", "broken-off")
    ]
    assert predicted[0].equals(predicted[1])


def test_every_step_and_rank_draws_other_numbers() -> None:
    def drawn(seed: int, step: int, rank: int) -> list[float]:
        with torch.random.fork_rng(devices=[]):
            seed_draws(seed, step, rank, torch.device("cpu"))
            return torch.rand(3).tolist()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({tuple(drawn(*each)) for each in itertools.product(range(4), repeat=3)}) == 64
