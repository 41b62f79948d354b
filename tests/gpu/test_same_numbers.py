"""A GPU trains every component, under every way of holding and sending its tables, as the CPU does."""

import json
from pathlib import Path
from typing import Any

import pytest

from cetnet.models.registry import COMPONENTS
from cetnet.trainer.check_run import check_run
from cetnet.trainer.config import RunConfig
from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.train import train
from tests.data import write_dataset
from tests.gpu.runs import HOST_MEMORY, ROWS, settings, write_large
from tests.processes import run_settings
from tests.trainer.test_every_model import component

# By how much NE may differ from the CPU's in fp32 after ten steps, relatively.
BOUNDS = {"fp32": 1e-4, "bf16": 1e-2}
MODELS: dict[str, dict[str, Any]] = {
    **{kind: {"components": {kind: component(kind)}} for kind in COMPONENTS},
    "batch_norm": {"components": {"dnn": {**component("dnn"), "batch_norm": True}}},
    "cetnet": run_settings(Path("unread"), Path("unwritten"))["model"],
}

TABLES: dict[str, tuple[float, dict[str, Any]]] = {
    "table_wise": (1e-4, {"sharding": {"constraints": {"*": {"sharding_types": ["table_wise"]}}}}),
    "row_wise": (1e-4, {"sharding": {"constraints": {"*": {"sharding_types": ["row_wise"]}}}}),
    "column_wise": (1e-2, {"sharding": {"constraints": {"*": {"sharding_types": ["column_wise"]}}}}),
    "host_memory": (1e-4, {"sharding": HOST_MEMORY}),
    "fp16_tables": (1e-2, {"training": {"table_precision": "fp16"}}),
    "fp16_communication": (1e-2, {"sharding": {"communication": {"forward": "fp16", "backward": "fp16"}}}),
    "bf16_communication": (1e-2, {"sharding": {"communication": {"forward": "bf16", "backward": "bf16"}}}),
}
# What the CPU's other kernels would do differently, or refuse.
GPU_ONLY = ("host_memory", "bf16_communication")


def progressive_ne(*runs: dict[str, Any]) -> list[dict[str, float]]:
    """Lifetime NE of every output, of runs on the same device, one after the other."""
    found = []
    with process_group(runs[0]["training"]["device"]) as processes:
        for run in runs:
            result = train(check_run(RunConfig.model_validate(run), processes.world_size), processes)
            assert result is not None
            found.append({key: value for key, value in result["train"].items() if "lifetime" in key})
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, {"train": ROWS})
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_as_on_the_cpu(data: Path, tmp_path: Path, device: str, model: str) -> None:
    (expected,) = progressive_ne(settings(data, tmp_path / "expected", "cpu", model=MODELS[model]))
    assert all(0.5 < value < 5 for value in expected.values())
    runs = [
        settings(data, tmp_path / name, device, model=MODELS[model], training={"precision": name})
        for name in BOUNDS
    ]
    found = progressive_ne(*runs)
    for result, bound in zip(found, BOUNDS.values(), strict=True):
        assert result == pytest.approx(expected, rel=bound)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def of_the_cpu(large: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    (expected,) = progressive_ne(settings(large, tmp_path_factory.mktemp("cpu") / "run", "cpu"))
    return expected


@pytest.mark.parametrize("name", TABLES)
def test_tables_learn_as_on_the_cpu(
    large: Path, of_the_cpu: dict[str, float], tmp_path: Path, device: str, name: str
) -> None:
    if device == "cpu" and name in GPU_ONLY:
        pytest.skip("the CPU has no kernels for this")
    bound, sections = TABLES[name]
    (found,) = progressive_ne(settings(large, tmp_path / "run", device, **sections))
    assert found == pytest.approx(of_the_cpu, rel=bound)
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    kernels = {table["kernel"] for table in plan["tables"]}
    assert kernels == ({"fused", "fused_uvm_caching"} if name == "host_memory" else {"fused"})
