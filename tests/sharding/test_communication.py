"""Half the bytes on the network: the same training within fp16's precision, and a smaller estimate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cetnet.sharding.communication import codecs
from cetnet.sharding.config import CommunicationConfig
from cetnet.trainer.check_run import check_run
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import UserError
from tests.data import write_dataset
from tests.processes import run_processes, run_settings, train_all

PLANS = ("table_wise", "row_wise")
FP16 = {"forward": "fp16", "backward": "fp16"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 steps under each plan, with float32 and with fp16 on the network."""
    out = tmp_path_factory.mktemp("runs")
    write_dataset(out / "data", {"train": 64 * 8, "test": 64}, row_group_size=150)
    settings = []
    for plan in PLANS:
        for name, communication in {"fp32": {}, "fp16": FP16}.items():
            settings.append(
                run_settings(
                    out / "data",
                    out / f"{plan}-{name}",
                    sharding=sharding(plan, communication),
                    evaluation={"splits": []},
                )
            )
    run_processes(train_all, 2, settings)
    return out


def sharding(plan: str, communication: dict[str, str]) -> dict[str, Any]:
    return {"constraints": {"*": {"sharding_types": [plan]}}, "communication": communication}


@pytest.mark.parametrize("plan", PLANS)
def test_fp16_trains_like_fp32_but_not_bit_by_bit(runs: Path, plan: str) -> None:
    full, half = (losses(runs / f"{plan}-{name}") for name in ("fp32", "fp16"))
    assert len(full) == 8
    # fp16 rounds to 5e-4 of a value.
    np.testing.assert_allclose(half, full, rtol=1e-3)
    assert half != full


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("plan", PLANS)
def test_planner_reckons_with_fewer_bytes(runs: Path, plan: str) -> None:
    full, half = (
        json.loads((runs / f"{plan}-{name}" / "plan.json").read_text())["tables"] for name in ("fp32", "fp16")
    )
    for table, smaller in zip(full, half, strict=True):
        assert 0.4 < smaller["milliseconds"] / table["milliseconds"] < 1


def test_small_gradients_survive_fp16() -> None:
    gradients = torch.logspace(-8.3, 0.5, 1000)
    registry = codecs(CommunicationConfig(**FP16), "cpu")
    assert registry is not None
    for pair in registry.values():
        received = pair.backward.decode(pair.backward.encode(gradients))
        torch.testing.assert_close(received, gradients, rtol=6e-4, atol=0)
    # Plain fp16 has lost every second bit of them, and more.
    assert (gradients.half().float() / gradients - 1).abs().max() > 0.1


def test_bf16_on_the_cpu_is_refused_in_one_line(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", {"train": 64, "test": 64})
    settings = run_settings(
        tmp_path / "data",
        tmp_path / "run",
        sharding={"communication": {"forward": "fp16", "backward": "bf16"}},
    )
    with pytest.raises(UserError, match=r"sharding\.communication\.backward=bf16 runs on CUDA only"):
        check_run(RunConfig.model_validate(settings), 1, False)
