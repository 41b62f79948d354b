"""Codistillation: every step has what copies of the components said that were made when its part began."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cetnet.trainer.train
from cetnet.models.batch import Batch
from cetnet.models.cetnet import Predictions
from cetnet.models.config import CETNetConfig
from cetnet.models.served import inputs_of
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import load_schema
from cetnet.trainer.export.model import load_model
from cetnet.trainer.processes.distributed import process_group
from cetnet.trainer.session import Session, run_pipeline
from tests.data import write_dataset
from tests.processes import INTERFORMER, run_processes, run_settings, train_all

# 11 steps of 64 rows, the last one padded, with an evaluation after the tenth.
ROWS, WARM_UP, EVERY, EVALUATED = 700, 3, 4, 10
PARTS = [(0, 3), (3, 7), (7, 10), (10, 11)]
SETTINGS: dict[str, Any] = {
    "model": {
        "components": {
            "dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8], "copies": 2},
            "interformer": INTERFORMER,
        },
        "collaboration": {
            "kind": "codistillation",
            "weight": 0.7,
            "every_steps": EVERY,
            "warm_up_steps": WARM_UP,
        },
    },
    "evaluation": {"splits": ["test"], "every_steps": EVALUATED},
    "checkpoint": {"every_steps": 1, "keep": 20},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("codistilled")
    write_dataset(root / "data", {"train": ROWS, "validation": 100, "test": 200}, row_group_size=60)
    run_processes(train_all, 2, [run_settings(root / "data", root / "whole", **SETTINGS)])
    return root


def parts_of(monkeypatch: pytest.MonkeyPatch) -> list[list[Batch]]:
    """What is trained on from now on, part by part."""
    seen: list[list[Batch]] = []

    def recorded(session: Session, batches: Iterable[Batch]) -> Iterator[Predictions]:
        part = list(batches)
        seen.append(part)
        return run_pipeline(session, part)

    monkeypatch.setattr(cetnet.trainer.train, "run_pipeline", recorded)
    return seen


@pytest.mark.timeout(300)
def test_the_peers_are_the_checkpoint_of_when_the_part_began(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(monkeypatch)
    settings = run_settings(root / "data", root / "alone", **SETTINGS)
    with process_group("cpu") as processes:
        train_all(processes, [settings])
    assert [len(part) for part in parts] == [stop - start for start, stop in PARTS]
    assert all(batch.peers is None for batch in parts[0])
    config, schema = RunConfig.model_validate(settings), load_schema(root / "data")
    for part, (start, _) in zip(parts[1:], PARTS[1:], strict=True):
        checkpoint = root / f"alone/checkpoints/step-{start:09d}"
        model = load_model(config, schema, checkpoint).served
        for batch in part:
            assert batch.peers is not None
            said = model(**inputs_of(schema, batch.sparse, batch.dense))  # in plain PyTorch
            torch.testing.assert_close(batch.peers.T.sigmoid(), said[1:], rtol=0, atol=1e-6)
    alone, whole = (json.loads((root / run / "result.json").read_text()) for run in ("alone", "whole"))
    assert alone["train"] == pytest.approx(whole["train"], abs=1e-6)  # on one process and on two
    assert alone["splits"]["test"] == pytest.approx(whole["splits"]["test"], abs=1e-6)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", [5, 7])
def test_a_resumed_run_goes_on_with_the_same_copies(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the middle of a part, and between two; on one process what two began."""
    cut = root / f"cut-{step}"
    shutil.copytree(root / "whole", cut)
    (cut / "result.json").unlink()
    for checkpoint in (cut / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    parts = parts_of(monkeypatch)
    with process_group("cpu") as processes:
        train_all(processes, [run_settings(root / "data", cut, **SETTINGS)], resume=True)
    ends = [stop for _, stop in PARTS if stop > step]
    assert [len(part) for part in parts] == [
        stop - start for start, stop in zip([step, *ends], ends, strict=False)
    ]
    resumed, whole = (json.loads((run / "result.json").read_text()) for run in (cut, root / "whole"))
    assert resumed["train"] == pytest.approx(whole["train"], abs=1e-6)
    assert resumed["splits"]["test"] == pytest.approx(whole["splits"]["test"], abs=1e-6)


def test_components_that_learn_nothing_of_their_own_have_nothing_to_say() -> None:
    model = {**SETTINGS["model"], "component_weight": 0}
    with pytest.raises(ValueError, match="components that learn by themselves"):
        CETNetConfig.model_validate(model)
