"""Damaged and malicious checkpoints are refused with a clear line, and nothing in them is run."""

import dataclasses
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from models.schema import Schema
from tests.data import make_schema
from tests.processes import run_settings
from trainer.build import Session, build_session
from trainer.checkpoint import Checkpoints, latest_checkpoint, load_checkpoint, read_trainer_state
from trainer.config import RunConfig
from trainer.distributed import Processes, process_group
from trainer.errors import UserError


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._marker}'",)


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with process_group("cpu") as processes:
        yield processes


def new_session(processes: Processes, seed: int, schema: Schema | None = None) -> Session:
    model = {"components": {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]}}}
    settings = run_settings(Path("unread"), Path("unwritten"), model=model, training={"seed": seed})
    return build_session(RunConfig.model_validate(settings), schema or make_schema(), processes)


@pytest.fixture(scope="module")
def session(processes: Processes) -> Session:
    session = new_session(processes, seed=1)
    session.optimizer.init_state()  # as after the first step
    return session


@pytest.fixture(scope="module")
def saved(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save("step-000000001", session.model, session.optimizer, {"progress": {}, "ne": {}})
    checkpoints.close()
    return folder / "step-000000001"


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / saved.name))


def values(session: Session) -> dict[str, torch.Tensor]:
    def local(value: Any) -> torch.Tensor:
        return value.local_shards()[0].tensor if hasattr(value, "local_shards") else value

    return {key: local(value).clone() for key, value in session.model.state_dict().items()}


def assert_refused(checkpoint: Path, session: Session, *named: str) -> None:
    before = values(session)
    with pytest.raises(UserError) as error:
        load_checkpoint(checkpoint, session.model, session.optimizer)
    message = str(error.value)
    assert "\n" not in message
    for text in (str(checkpoint), "remove it to use the one before", *named):
        assert text in message
    torch.testing.assert_close(values(session), before, rtol=0, atol=0)


def edit_metadata(checkpoint: Path, change: Callable[[Metadata], None]) -> None:
    file = checkpoint / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(pickle.dumps(metadata))


def test_an_honest_checkpoint_loads(checkpoint: Path, processes: Processes, session: Session) -> None:
    other = new_session(processes, seed=2)
    assert any(
        not torch.equal(a, b) for a, b in zip(values(other).values(), values(session).values(), strict=True)
    )
    load_checkpoint(checkpoint, other.model, other.optimizer)
    torch.testing.assert_close(values(other), values(session), rtol=0, atol=0)
    assert latest_checkpoint(checkpoint.parent) == checkpoint
    assert read_trainer_state(checkpoint) == {"progress": {}, "ne": {}}


def test_malicious_metadata(checkpoint: Path, session: Session, tmp_path: Path) -> None:
    marker = tmp_path / "run"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Malicious(marker)))
    assert_refused(checkpoint, session, "posix.system")
    assert not marker.exists()


def test_malicious_part_of_metadata(checkpoint: Path, session: Session, tmp_path: Path) -> None:
    marker = tmp_path / "run"
    edit_metadata(checkpoint, lambda metadata: setattr(metadata, "planner_data", Malicious(marker)))
    assert_refused(checkpoint, session, "posix.system")
    assert not marker.exists()


@pytest.mark.parametrize("entry", ["bytes", "tensor"])
def test_malicious_entry(checkpoint: Path, session: Session, tmp_path: Path, entry: str) -> None:
    """A parameter whose stored bytes are a malicious pickle, announced as an object or still as a tensor."""
    marker = tmp_path / "run"
    content = BytesIO()
    torch.save(Malicious(marker), content)
    (checkpoint / "malicious.distcp").write_bytes(content.getvalue())
    name = "model.towers.dcnv2.component.logit.weight"

    def change(metadata: Metadata) -> None:
        index = next(index for index in metadata.storage_data if index.fqn == name)
        info = metadata.storage_data.pop(index)
        info = dataclasses.replace(
            info, relative_path="malicious.distcp", offset=0, length=len(content.getvalue())
        )
        if entry == "bytes":
            metadata.state_dict_metadata[name] = BytesStorageMetadata()
            index = MetadataIndex(name)
        metadata.storage_data[index] = info

    edit_metadata(checkpoint, change)
    assert_refused(
        checkpoint, session, f"{name} is not a tensor" if entry == "bytes" else "Weights only load failed"
    )
    assert not marker.exists()


def test_the_malicious_pickles_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "run")))
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", [0, 0.5, 0.95])
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_truncated_files(checkpoint: Path, session: Session, name: str, kept: float) -> None:
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: int(kept * len(content))])
    assert_refused(checkpoint, session)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_missing_files(checkpoint: Path, session: Session, name: str) -> None:
    (checkpoint / name).unlink()
    assert_refused(checkpoint, session)


def test_another_model(checkpoint: Path, processes: Processes) -> None:
    schema = make_schema()
    other = new_session(processes, 1, schema.model_copy(update={"tables": schema.tables | {"user": 60}}))
    assert_refused(checkpoint, other, "dcnv2__user")


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", None])
def test_unreadable_trainer_state(checkpoint: Path, content: str | None) -> None:
    file = checkpoint / "trainer.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"trainer\.json: not readable"):
        read_trainer_state(checkpoint)
