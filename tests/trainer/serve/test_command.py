"""What is told before anything is served."""

import asyncio
import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cetnet.benchmarks.serving.server_process import started
from cetnet.trainer.cli import app
from cetnet.trainer.errors import UserError
from cetnet.trainer.serve.exports import Identity, exports_in, fastest_served
from cetnet.trainer.serve.metrics import Metrics
from cetnet.trainer.serve.version import Versions, load_version
from tests.trainer.export.toy import OUTPUTS, write_about


def told(*arguments: str | Path) -> str:
    """The user's mistake in `cetnet serve ARGUMENTS`."""
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, ["serve", *map(str, arguments)], catch_exceptions=False)
    return str(error.value)


def test_mistakes_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    assert "no such folder" in told(tmp_path / "a")
    assert "neither an export (about.json is missing) nor a folder of exports" in told(tmp_path)
    (tmp_path / "about.json").write_text("{}", encoding="utf-8")
    assert "--name 'a/b'" in told(tmp_path, "--name", "a/b")
    assert "cannot listen on no.such.host.invalid:8080" in told(tmp_path, "--host", "no.such.host.invalid")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in told(
            tmp_path, "--port", str(port)
        )
        assert "choose another --host or --grpc-port" in told(
            tmp_path, "--port", "0", "--grpc-port", str(port)
        )


def test_the_newest_export_is_the_last_in_natural_order(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", ".step-11.tmp", "step-10b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "about.json").write_text("{}", encoding="utf-8")
    (tmp_path / "z").mkdir()
    (tmp_path / "zz.txt").write_text("", encoding="utf-8")
    names = [identity.folder.name for identity in exports_in(tmp_path)]
    assert names == ["step-10b", "step-10", "step-9", "a"]
    (tmp_path / "about.json").write_text("{}", encoding="utf-8")
    assert [identity.folder for identity in exports_in(tmp_path)] == [tmp_path]


def test_onnx_is_served_where_it_is_since_it_scores_batches_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "model.aoti.pt2").touch()
    assert fastest_served(tmp_path) is None
    (tmp_path / "model.onnx").touch()
    assert fastest_served(tmp_path) == "onnx"


def identity_of(folder: Path) -> Identity:
    identity = Identity.of(folder)
    assert identity is not None
    return identity


def test_an_export_must_give_its_examples_answers(export: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(export, folder)
    version = load_version(identity_of(folder), None)
    assert (version.name, version.outputs) == ("export", tuple(OUTPUTS))
    examples = pq.read_table(folder / "examples.parquet")
    for wrong in (np.float32(1e-5), np.float32("nan")):
        column = examples[f"expected/{OUTPUTS[1]}"].to_numpy().copy()
        column[5] += wrong
        place = examples.schema.get_field_index(f"expected/{OUTPUTS[1]}")
        spoilt = examples.set_column(place, f"expected/{OUTPUTS[1]}", pa.array(column))
        pq.write_table(spoilt, folder / "examples.parquet")
        write_about(folder)
        with pytest.raises(UserError, match=f"should give other answers \\({OUTPUTS[1]}"):
            load_version(identity_of(folder), None)
    (folder / "examples.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="not as it was exported"):
        load_version(identity_of(folder), None)


def test_an_export_that_is_copied_file_by_file_answers_when_it_is_whole(export: Path, tmp_path: Path) -> None:
    """As `cp -r` does, whose first file is about.json."""
    metrics = Metrics()
    versions = Versions(tmp_path, None, metrics)
    folder = tmp_path / "v1"
    folder.mkdir()
    shutil.copy2(export / "about.json", folder)

    def refused() -> float:
        asyncio.run(versions.look())
        return metrics.refused.collect()[0].samples[0].value

    assert [refused() for _ in range(3)] == [1, 1, 1]
    shutil.copytree(export, folder, dirs_exist_ok=True)
    assert (refused(), versions.current) == (1, None)  # it may not have ended
    assert refused() == 1
    assert versions.current is not None


def test_without_a_version_that_answers_it_ends(export: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(export, folder)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    about["sha256"]["request.json"] = "0"
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(RuntimeError) as error, started(folder, "--host", "0.0.0.0"):
        pass
    said = str(error.value).removeprefix("the server isn't ready: ").splitlines()
    assert said[0].startswith("whoever reaches 0.0.0.0 can ask")
    assert said[1:] == [f"cetnet: {folder}/request.json: not as it was exported; export the run again"]
