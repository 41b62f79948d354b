"""Damaged and malicious checkpoints are refused with a clear line, and nothing in them is run."""

import dataclasses
import hashlib
import json
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

from cetnet.models.schema import Schema
from cetnet.trainer.checkpoint.checkpoints import (
    Checkpoints,
    latest_checkpoint,
    load_checkpoint,
    read_trainer_state,
    verify_checkpoint,
)
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.session import Session, build_session
from tests.data import make_schema
from tests.processes import run_settings


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


def load(checkpoint: Path, session: Session) -> None:
    verify_checkpoint(checkpoint)
    load_checkpoint(checkpoint, session.model, session.optimizer)


def assert_refused(checkpoint: Path, session: Session, *named: str) -> None:
    before = values(session)
    with pytest.raises(UserError) as error:
        load(checkpoint, session)
    message = str(error.value)
    assert "\n" not in message
    assert "weights_only" not in message
    for text in (f"{checkpoint}: ", *named):
        assert text in message
    torch.testing.assert_close(values(session), before, rtol=0, atol=0)


def seal(checkpoint: Path) -> None:
    """Make the manifest agree with files that were changed."""
    files = {
        file.name: {
            "bytes": file.stat().st_size,
            "blake2b": hashlib.blake2b(file.read_bytes()).hexdigest(),
        }
        for file in checkpoint.iterdir()
        if file.name != "manifest.json"
    }
    (checkpoint / "manifest.json").write_text(json.dumps(files))


def edit_metadata(checkpoint: Path, change: Callable[[Metadata], None]) -> None:
    file = checkpoint / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(pickle.dumps(metadata))
    seal(checkpoint)


def point_all_tensors_to(checkpoint: Path, length: int) -> None:
    """Have every tensor's bytes be the first `length` of its file."""

    def point(metadata: Metadata) -> None:
        for index, info in metadata.storage_data.items():
            metadata.storage_data[index] = dataclasses.replace(info, offset=0, length=length)

    edit_metadata(checkpoint, point)


def test_an_honest_checkpoint_loads(checkpoint: Path, processes: Processes, session: Session) -> None:
    other = new_session(processes, seed=2)
    assert any(
        not torch.equal(a, b) for a, b in zip(values(other).values(), values(session).values(), strict=True)
    )
    load(checkpoint, other)
    torch.testing.assert_close(values(other), values(session), rtol=0, atol=0)
    assert latest_checkpoint(checkpoint.parent) == checkpoint
    assert read_trainer_state(checkpoint) == {"progress": {}, "ne": {}}


def test_the_manifest_lists_every_file(checkpoint: Path) -> None:
    written = json.loads((checkpoint / "manifest.json").read_text())
    assert sorted(written) == [".metadata", "__0_0.distcp", "trainer.json"]
    seal(checkpoint)
    assert json.loads((checkpoint / "manifest.json").read_text()) == written


def test_a_checkpoint_of_earlier_versions_has_no_manifest(
    checkpoint: Path, session: Session, capfd: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "manifest.json").unlink()
    load(checkpoint, session)
    assert "no manifest.json" in " ".join(capfd.readouterr().err.split())


def test_malicious_metadata(checkpoint: Path, session: Session, tmp_path: Path) -> None:
    marker = tmp_path / "run"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Malicious(marker)))
    seal(checkpoint)
    assert_refused(checkpoint, session, "posix.system")
    assert not marker.exists()


def test_malicious_part_of_metadata(checkpoint: Path, session: Session, tmp_path: Path) -> None:
    marker = tmp_path / "run"
    edit_metadata(checkpoint, lambda metadata: setattr(metadata, "planner_data", Malicious(marker)))
    assert_refused(checkpoint, session, "posix.system")
    assert not marker.exists()


def test_malicious_attributes_in_metadata(checkpoint: Path, session: Session) -> None:
    """What a pickle may do without naming anything that is forbidden: change a class, a function, a method."""

    def opcodes(module: str, name: str, attribute: str) -> bytes:
        """`setattr(module.name, attribute, "evil")`, and forget it."""
        state = pickle.NONE + pickle.EMPTY_DICT + pickle.UNICODE + attribute.encode() + b"\n"
        state += pickle.UNICODE + b"evil\n" + pickle.SETITEM + pickle.TUPLE2
        return pickle.GLOBAL + f"{module}\n{name}\n".encode() + state + pickle.BUILD + pickle.POP

    file = checkpoint / ".metadata"
    honest = file.read_bytes()
    metadata = "torch.distributed.checkpoint.metadata"
    attacks = [
        opcodes(metadata, "MetadataIndex", "__module__"),
        opcodes("pathlib", "PosixPath", "exists"),
        opcodes("torch.serialization", "_get_layout", "__code__"),
        opcodes(metadata, "MetadataIndex", "fqn").replace(
            pickle.NONE, pickle.UNICODE + b"x\n" + pickle.TUPLE1 + pickle.REDUCE + pickle.NONE, 1
        ),
    ]
    for attack in attacks:
        file.write_bytes(honest[:2] + attack + honest[2:])  # after the protocol's number
        seal(checkpoint)
        assert_refused(checkpoint, session, "metadata sets")
    assert MetadataIndex.__module__ == metadata
    file.write_bytes(honest)


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


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "trainer.json"])
def test_damaged_files(checkpoint: Path, session: Session, file: str) -> None:
    content = (checkpoint / file).read_bytes()
    for kept in (0, 1, len(content) // 2, len(content) - 1):
        (checkpoint / file).write_bytes(content[:kept])
        assert_refused(
            checkpoint,
            session,
            f"damaged ({file} has {kept} of {len(content)} bytes); there is none before it",
        )
    shutil.copytree(checkpoint, checkpoint.with_name("step-000000000"))
    for place in (0, len(content) // 2, len(content) - 1):
        (checkpoint / file).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert_refused(
            checkpoint, session, f"damaged ({file} was altered", "move it away to go back to step-000000000"
        )
    (checkpoint / file).unlink()
    assert_refused(checkpoint, session, f"damaged ({file} is missing); remove it or move it away")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"trainer.json": {"bytes": 1}}'])
def test_a_damaged_manifest(checkpoint: Path, session: Session, content: str) -> None:
    (checkpoint / "manifest.json").write_text(content)
    assert_refused(checkpoint, session, "damaged (manifest.json is not readable)")


def test_one_moved_away_beside_the_others_is_no_checkpoint(checkpoint: Path) -> None:
    shutil.copytree(checkpoint, checkpoint.with_name("step-000000002.damaged"))
    assert latest_checkpoint(checkpoint.parent) == checkpoint


@pytest.mark.parametrize("elsewhere", ["../elsewhere.distcp", "..", ""])
def test_metadata_that_refers_to_other_folders(checkpoint: Path, session: Session, elsewhere: str) -> None:
    def change(metadata: Metadata) -> None:
        for index, info in metadata.storage_data.items():
            metadata.storage_data[index] = dataclasses.replace(info, relative_path=elsewhere)

    edit_metadata(checkpoint, change)
    assert_refused(checkpoint, session, f"refers to {elsewhere!r}, outside of the checkpoint")


def test_a_table_of_another_size(checkpoint: Path, processes: Processes) -> None:
    schema = make_schema()
    other = new_session(processes, 1, schema.model_copy(update={"tables": schema.tables | {"user": 60}}))
    assert_refused(
        checkpoint, other, "of another model", "dcnv2__user.weight is [50, 4] there and [60, 4] here"
    )


def test_tensors_that_one_side_lacks(checkpoint: Path, processes: Processes, session: Session) -> None:
    schema = make_schema()
    fewer = {
        "features": [feature for feature in schema.features if feature.name != "queries"],
        "tables": {name: rows for name, rows in schema.tables.items() if name != "query"},
    }
    assert_refused(checkpoint, new_session(processes, 1, schema.model_copy(update=fewer)), "of another model")
    key = "model.towers.dcnv2.component.logit.weight"

    def rename(metadata: Metadata) -> None:
        metadata.state_dict_metadata[f"{key}.old"] = metadata.state_dict_metadata.pop(key)

    def add(metadata: Metadata) -> None:
        metadata.state_dict_metadata[key] = metadata.state_dict_metadata[f"{key}.old"]

    edit_metadata(checkpoint, rename)
    assert_refused(checkpoint, session, f"of another model (it lacks {key})", "run_dir")
    edit_metadata(checkpoint, add)
    assert_refused(checkpoint, session, f"of another model (the model here lacks {key}.old)")


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", None])
def test_unreadable_trainer_state(checkpoint: Path, content: str | None) -> None:
    file = checkpoint / "trainer.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"step-000000001: damaged \(trainer\.json is not readable"):
        read_trainer_state(checkpoint)
