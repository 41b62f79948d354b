"""What a run on a GPU leaves behind: checkpoints, steps left out, maps of ids, scores."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp

from cetnet.models.schema import Schema
from cetnet.trainer.check_run import check_run
from cetnet.trainer.checkpoint.checkpoints import load_checkpoint, verify_checkpoint
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.evaluate import evaluate_run, predict_run
from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.scoring import score
from cetnet.trainer.session import build_session
from cetnet.trainer.train import train
from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, make_table, write_dataset, write_split
from tests.gpu.runs import HOST_MEMORY, ROWS, settings, write_large
from tests.trainer.test_nonfinite import BAD_STEP, COMPONENT, STEPS, checksums, steps
from tests.trainer.test_nonfinite import settings as settings_with_fault

HALF, LAST = 5, 10
WAYS: dict[str, dict[str, Any]] = {
    "rowwise_adagrad": {},
    "evaluated_on_the_way": {"evaluation": {"splits": [], "validation": "test", "every_steps": 3}},
    "sgd": {"optimizer": {"sparse": {"kind": "sgd", "lr": 0.1}}},
    "host_memory": {"sharding": HOST_MEMORY},
    "dense": {"sharding": {"dense_tables": ["*"]}},
    "bf16": {"training": {"precision": "bf16"}},
}
ADAM = {"optimizer": {"sparse": {"kind": "adam", "lr": 0.05}}}
GPU_WAYS = {
    "adam": ADAM,
    "adam_evaluated_on_the_way": ADAM | WAYS["evaluated_on_the_way"],
}


def run(run_settings: dict[str, Any], resume: bool = False) -> dict[str, Any] | None:
    with process_group(run_settings["training"]["device"]) as processes:
        return train(
            check_run(RunConfig.model_validate(run_settings), processes.world_size, resume), processes
        )


def state_of(run_dir: Path, name: int | str) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint (of a step, or `best`), by its key."""
    checkpoint = run_dir / "checkpoints" / (f"step-{name:09d}" if isinstance(name, int) else name)
    metadata = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(value.size, dtype=value.properties.dtype)
        for key, value in metadata.items()
        if hasattr(value, "properties")
    }
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    return state


def curve(run_dir: Path, key: str = "loss") -> list[float]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if line["kind"] == "train"]


def interrupted(run_dir: Path, step: int) -> Path:
    """A copy of a finished run, as if it had been killed after the checkpoint of a step."""
    copy = run_dir.with_name(f"{run_dir.name}-resumed")
    shutil.copytree(run_dir, copy)
    (copy / "result.json").unlink()
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return copy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large(tmp_path_factory.mktemp("data"))


def assert_resumes(data: Path, out: Path, device: str, way: dict[str, Any]) -> None:
    checkpoint = {"every_steps": HALF, "keep": 2}
    whole = settings(data, out / "run", device, **{"checkpoint": checkpoint} | way)
    expected = run(whole)
    resumed = whole | {"run_dir": str(interrupted(out / "run", HALF))}
    result = run(resumed, resume=True)
    assert result is not None
    assert expected is not None
    assert result["steps"] == expected["steps"] == LAST
    np.testing.assert_allclose(curve(out / "run-resumed"), curve(out / "run"), rtol=1e-5)
    assert result["train"] == pytest.approx(expected["train"], rel=1e-6)
    torch.testing.assert_close(
        state_of(out / "run-resumed", LAST), state_of(out / "run", LAST), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", WAYS)
def test_a_resumed_run_ends_as_if_nothing_had_happened(
    data: Path, tmp_path: Path, device: str, name: str
) -> None:
    assert_resumes(data, tmp_path, device, WAYS[name])


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("name", GPU_WAYS)
def test_fused_adam_resumes(data: Path, tmp_path: Path, device: str, name: str) -> None:
    assert_resumes(data, tmp_path, device, GPU_WAYS[name])


@pytest.mark.parametrize("name", ["rowwise_adagrad", "host_memory"])
def test_the_best_is_what_remains(data: Path, tmp_path: Path, device: str, name: str) -> None:
    """Rows of it replace those that came after it, also where the GPU holds a copy of these."""
    stopping = {"monitor": "ne/fused", "patience": 2}
    worse = {"sparse": {"lr": 2.0}, "dense": {"lr": 0.1}}
    result = run(
        settings(
            data,
            tmp_path / "run",
            device,
            **WAYS[name],
            optimizer=worse,
            evaluation={
                "splits": ["test"],
                "validation": "test",
                "every_steps": 2,
                "early_stopping": stopping,
            },
        )
    )
    assert result is not None
    best, last = state_of(tmp_path / "run", "best"), state_of(tmp_path / "run", result["steps"])
    model = {key for key in best if key.startswith("model.")}
    torch.testing.assert_close({k: last[k] for k in model}, {k: best[k] for k in model}, rtol=0, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    evaluations = [line["ne/fused"] for line in lines if line["kind"] == "eval"]
    assert min(evaluations) < evaluations[-2]  # the last of training; the last of all is of the best
    assert result["splits"]["test"]["ne/fused"] == pytest.approx(min(evaluations), rel=1e-6)


def test_a_run_is_scored_alike_here_and_on_the_cpu(
    data: Path, tmp_path: Path, device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = settings(data, tmp_path / "run", device, evaluation={"splits": ["test"]})
    run(trained)
    written = pq.read_table(tmp_path / "run/predictions/test.parquet")
    out = tmp_path / "out.parquet"
    predict_run(tmp_path / "run", Dataset(data, "test"), out)
    evaluate_run(tmp_path / "run", Dataset(data, "test"))
    assert "gAUC" in capfd.readouterr().out
    config = RunConfig.model_validate(trained)
    with process_group("cpu") as processes:
        session = build_session(config, Dataset(data, "test").schema, processes)
        checkpoint = tmp_path / f"run/checkpoints/step-{LAST:09d}"
        verify_checkpoint(checkpoint)
        load_checkpoint(checkpoint, session.model, session.optimizer)
        scores = score(session, Dataset(data, "test"), 64, processes)
    assert scores is not None
    predicted = pq.read_table(out)
    for output in ("fused", "interformer", "dhen", "dcnv2"):
        probability = written[output].to_numpy()
        assert probability.std() > 1e-3
        np.testing.assert_allclose(predicted[output].to_numpy(), probability, atol=1e-6)
        np.testing.assert_allclose(scores.probability[output], probability, atol=1e-5)


def test_fp16_tables_are_half_as_large(data: Path, tmp_path: Path, device: str) -> None:
    run(settings(data, tmp_path / "run", device, training={"table_precision": "fp16"}))
    tables = {
        key: value
        for key, value in state_of(tmp_path / "run", LAST).items()
        if key.startswith("model.tables.")
    }
    assert {value.dtype for value in tables.values()} == {torch.float16}


@pytest.fixture(scope="module")
def faults(device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs with a fault in their third step."""
    folder = tmp_path_factory.mktemp("faults")
    write_dataset(folder / "data", {"train": 1000})
    (folder / "faulty_component.py").write_text(COMPONENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for fault in ("logit", "gradient", "dense", "split"):
            faulty = settings_with_fault(folder, fault, "skip")
            faulty["training"]["device"] = device
            run(faulty)
        stopping = settings_with_fault(folder, "gradient", "stop")
        stopping["training"]["device"] = device
        with pytest.raises(UserError, match=rf"step {BAD_STEP}: the gradient of component 'faulty'"):
            run(stopping)
        yield folder


@pytest.mark.parametrize("fault", ["logit", "gradient", "dense", "split"])
def test_a_skipped_step_changes_nothing(faults: Path, fault: str) -> None:
    of = faults / f"{fault}-skip"
    assert steps(of) == list(range(1, STEPS + 1))
    assert checksums(of, BAD_STEP - 1) == checksums(of, BAD_STEP) != checksums(of, BAD_STEP + 1)
    assert json.loads((of / "result.json").read_text())["skipped_steps"] == 1


def test_a_run_stops_before_the_step(faults: Path) -> None:
    assert steps(faults / "gradient-stop") == list(range(1, BAD_STEP))


MANAGED, MANY = {"user": 40, "item": 40}, 400


def managed_schema(rows: dict[str, int]) -> Schema:
    schema = make_schema()
    return Schema.model_validate(
        schema.model_dump() | {"tables": schema.tables | rows, "managed_collision": list(MANAGED)}
    )


def maps(run_dir: Path, step: int) -> dict[str, set[int]]:
    """The ids that have a row, by the map's key."""
    return {
        key: set(value.flatten().tolist()) - {-1}
        for key, value in state_of(run_dir, step).items()
        if key.endswith("_hash_zch_identities")
    }


@pytest.mark.usefixtures("on_gpu")
def test_ids_get_rows_and_lose_them(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as many ids as rows; a resumed run goes on with the same rows; old ids make way for new ones."""
    data, out = tmp_path / "data", tmp_path / "run"
    ids = make_schema().model_copy(update={"tables": make_schema().tables | dict.fromkeys(MANAGED, MANY)})
    write_split(data / "train", make_table(ids, ROWS, 0), [[ROWS // 2, ROWS // 2]])
    write_split(data / "test", make_table(ids, 200, 1), [[200]])
    save_yaml(data / "schema.yaml", managed_schema(MANAGED))
    whole = settings(
        data, out, device, checkpoint={"every_steps": HALF, "keep": 2}, evaluation={"splits": ["test"]}
    )
    expected = run(whole)
    assert expected is not None
    full = maps(out, HALF)
    assert len(full) == 6  # users and items of each of three components
    assert all(len(held) == 40 for held in full.values())
    assert maps(out, LAST) == full  # all were seen within the hour

    result = run(whole | {"run_dir": str(interrupted(out, HALF))}, resume=True)
    assert result is not None
    assert result["train"] == pytest.approx(expected["train"], rel=1e-5)
    assert result["splits"]["test"] == pytest.approx(expected["splits"]["test"], rel=1e-4)
    assert maps(tmp_path / "run-resumed", LAST) == full

    shutil.rmtree(tmp_path / "run-resumed")
    later = SimpleNamespace(time=lambda: time.time() + 3 * 3600)
    monkeypatch.setattr("torchrec.modules.hash_mc_evictions.time", later)
    assert run(whole | {"run_dir": str(interrupted(out, HALF))}, resume=True) is not None
    for key, held in maps(tmp_path / "run-resumed", LAST).items():
        assert len(held - full[key]) > 10, key
