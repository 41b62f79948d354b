"""Checkpoints of real runs: damaged, malicious, cut short by a kill, too large for the disk."""

import importlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from cetnet.benchmarks.study.report.spectra import spectra_of
from cetnet.models.cetnet import CETNet
from cetnet.trainer.check_run import check_run
from cetnet.trainer.checkpoint.checkpoints import verify_checkpoint
from cetnet.trainer.checkpoint.manifest import find_damage
from cetnet.trainer.checkpoint.store import Disk
from cetnet.trainer.config import RunConfig, load_config
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.processes.launcher import CETNET
from cetnet.trainer.run_folder import locked_run
from cetnet.trainer.train import train
from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, write_dataset
from tests.paths import ROOT
from tests.processes import run_processes, run_settings, train_all
from tests.trainer.checkpoint.test_checkpoint import Malicious, point_all_tensors_to, seal

MODEL = {"components": {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]}}}
COMMANDS = [
    ["train", "experiment.yaml", "--resume"],
    ["evaluate", "run", "data"],
    ["predict", "run", "data", "--out", "scores.parquet"],
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that keeps the checkpoints of steps 2, 4 and 6, as if killed before its end."""
    folder = tmp_path_factory.mktemp("trained")
    write_dataset(folder / "data", {"train": 200, "test": 60}, row_group_size=40)
    settings = run_settings(
        Path("data"),
        Path("run"),
        model=MODEL,
        training={"device": "cpu", "max_steps": 6},
        checkpoint={"every_steps": 2, "keep": 3},
    ) | {"data": {"path": "data", "batch_size": 16, "lanes": 4}}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch, process_group("cpu") as processes:
        patch.chdir(folder)
        train_all(processes, [settings])
    (folder / "run" / "result.json").unlink()
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the run."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def cetnet(folder: Path, *arguments: str, file_size: int | None = None) -> subprocess.Popen[str]:
    """Start `cetnet ARGUMENTS` there, in a process of its own that may write files of so many bytes."""
    process = subprocess.Popen(
        [*CETNET, *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if file_size else subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    if file_size:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_size, file_size))
    return process


def assert_refused(answer: tuple[int, str], *named: str) -> None:
    code, stderr = answer
    assert code == 2
    (line,) = stderr.splitlines()
    for text in ("cetnet: ", *named):
        assert text in line


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "__0_0.distcp", 100)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_the_checkpoint_before_a_damaged_one_is_offered(
    command: list[str], run: Callable[..., tuple[int, str]]
) -> None:
    newest = Path("run/checkpoints/step-000000006")
    truncate(newest)
    assert_refused(run(*command), f"{newest}: damaged (__0_0.distcp has 100 of ", "go back to step-000000004")
    newest.rename(newest.with_name("step-000000006.damaged"))
    assert run(*command)[0] == 0


@pytest.mark.usefixtures("folder")
def test_two_runs_are_kept_out_of_one_folder(run: Callable[..., tuple[int, str]]) -> None:
    with locked_run(Path("run")):
        assert_refused(run(*COMMANDS[0]), "run: another process trains in it")
    elsewhere = ["train", "experiment.yaml", "run_dir=other", "checkpoint.path=elsewhere"]
    with locked_run(Path("elsewhere")):
        assert_refused(run(*elsewhere), "elsewhere: another process trains in it")
    assert not Path("elsewhere").exists()
    assert not Path("other").exists()
    assert run(*COMMANDS[0])[0] == 0


@pytest.mark.usefixtures("folder")
def test_checkpoints_are_not_looked_for_where_they_were_not_kept(run: Callable[..., tuple[int, str]]) -> None:
    said = run(*COMMANDS[0], "checkpoint.path=elsewhere")
    assert_refused(said, "run: cannot resume, checkpoint.path was None and is now 'elsewhere'")


def test_the_best_checkpoint_is_looked_at_before_it_is_needed(
    folder: Path, run: Callable[..., tuple[int, str]]
) -> None:
    experiment = yaml.safe_load(Path("experiment.yaml").read_text(encoding="utf-8")) | {
        "run_dir": "stopping",
        "training": {"device": "cpu", "epochs": 2},
        "evaluation": {
            "validation": "test",
            "splits": ["test"],
            "every_epoch": True,
            "early_stopping": {"monitor": "ne/fused"},
        },
    }
    (folder / "stopping.yaml").write_text(yaml.safe_dump(experiment))
    command = ["train", "stopping.yaml", "--resume"]
    assert run(*command)[0] == 0
    (folder / "stopping/result.json").unlink()
    best = Path("stopping/checkpoints/best")
    truncate(best)
    assert_refused(run(*command), f"{best}: damaged (", "the next evaluation counts as the best")
    shutil.rmtree(best)
    assert run(*command)[0] == 0
    assert (folder / "stopping/result.json").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_malicious_files_with_a_manifest_that_agrees(
    command: list[str], run: Callable[..., tuple[int, str]]
) -> None:
    marker, checkpoint = Path("marker"), Path("run/checkpoints/step-000000006")
    honest = (checkpoint / ".metadata").read_bytes()
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Malicious(marker)))
    seal(checkpoint)
    assert_refused(run(*command), str(checkpoint), "posix.system")
    with pytest.raises(UserError, match=r"posix\.system"):
        list(spectra_of(checkpoint))
    (checkpoint / ".metadata").write_bytes(honest)
    payload = io.BytesIO()
    torch.save(Malicious(marker), payload)
    (checkpoint / "__0_0.distcp").write_bytes(payload.getvalue())
    point_all_tensors_to(checkpoint, len(payload.getvalue()))
    assert_refused(run(*command), str(checkpoint), "Weights only load failed")
    with pytest.raises(UserError, match="Weights only load failed"):
        list(spectra_of(checkpoint))
    assert not marker.exists()
    torch.load(io.BytesIO(payload.getvalue()), weights_only=False)
    assert marker.exists()  # it would have run


def test_no_component_of_a_checkpoint_is_imported(
    folder: Path, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)  # as `python -m` has the working directory there
    marker, checkpoint = Path("marker"), Path("run/checkpoints/step-000000006")
    (checkpoint / "evil.py").write_text("open('marker', 'w').close()")
    module = ".".join((*checkpoint.parts, "evil"))
    state = json.loads((checkpoint / "trainer.json").read_text())
    state["config"]["model"]["components"]["dcnv2"]["kind"] = f"{module}.Component"
    (checkpoint / "trainer.json").write_text(json.dumps(state))
    seal(checkpoint)
    assert_refused(run(*COMMANDS[0]), f"{checkpoint}: cannot resume, it has a component of kind '{module}")
    assert not marker.exists()
    importlib.import_module(module)
    assert marker.exists()  # it would have run


@pytest.mark.usefixtures("folder")
def test_data_of_another_schema_is_named(run: Callable[..., tuple[int, str]]) -> None:
    schema = make_schema()
    changed = (f.model_copy(update={"max_length": 3}) if f.name == "history" else f for f in schema.features)
    save_yaml(Path("data/schema.yaml"), schema.model_copy(update={"features": tuple(changed)}))
    named = "schema.features[3].max_length was 6 and is now 3"
    assert_refused(run(*COMMANDS[0]), "step-000000006: the data changed", named)


def test_every_rank_learns_what_one_finds(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", {"train": 128, "test": 64}, row_group_size=40)
    settings = run_settings(tmp_path / "data", tmp_path / "run", model=MODEL)
    run_processes(train_and_damage, 2, settings)


def train_and_damage(processes: Processes, settings: dict) -> None:
    train_all(processes, [settings])
    checkpoint = Path(settings["run_dir"]) / "checkpoints" / "step-000000002"
    verify_checkpoint(checkpoint)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert sorted(manifest) == [".metadata", "__0_0.distcp", "__1_0.distcp", "trainer.json"]
    for name in manifest:
        content = (checkpoint / name).read_bytes()
        torch.distributed.barrier()
        if processes.is_main:
            os.truncate(checkpoint / name, 1)
        torch.distributed.barrier()
        with pytest.raises(UserError, match=rf"{name} has 1 of {len(content)} bytes"):
            verify_checkpoint(checkpoint)
        torch.distributed.barrier()
        if processes.is_main:
            (checkpoint / name).write_bytes(content)


def test_killed_while_it_saves(folder: Path, run: Callable[..., tuple[int, str]]) -> None:
    checkpoints = folder / "again" / "checkpoints"
    steps = ["training.epochs=3", "training.max_steps=36", "checkpoint.every_steps=1", "checkpoint.keep=1"]
    arguments = ["train", "experiment.yaml", "run_dir=again", *steps]
    process = cetnet(folder, *arguments)
    deadline = time.monotonic() + 400
    while not list(checkpoints.glob("step-*")):  # from then on the next is being written nearly always
        assert time.monotonic() < deadline
    process.kill()
    process.wait()
    left = list(checkpoints.glob("step-*"))
    assert left
    for checkpoint in left:
        assert (checkpoint / "manifest.json").exists()
        assert find_damage(checkpoint) is None
    (checkpoints / ".notes.tmp").mkdir()  # somebody's, and to stay
    assert run(*arguments, "--resume")[0] == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == [".notes.tmp", "step-000000036"]


def test_a_folder_that_another_process_trained_in_since_it_was_checked(folder: Path) -> None:
    config = load_config(folder / "experiment.yaml", ["run_dir=again"])
    checked = check_run(config, 1)
    shutil.copytree("run", "again")
    before = (folder / "again" / "metrics.jsonl").read_bytes()
    with process_group("cpu") as processes, pytest.raises(UserError, match=r"again exists; continue it with"):
        train(checked, processes)
    assert (folder / "again" / "metrics.jsonl").read_bytes() == before


def test_links_and_files_in_the_place_of_checkpoints_go_without_what_they_point_to(tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "checkpoints"
    for path in (mine, folder, folder / ".step-4.tmp"):
        path.mkdir()
    (mine / "notes").write_text("kept", encoding="utf-8")
    for name in ("step-000000001", "step-000000005", ".step-000000003.tmp"):
        (folder / name).symlink_to(mine)
    (folder / "step-000000002").write_text("of somebody", encoding="utf-8")
    with process_group("cpu") as processes:
        store = Disk(folder)
        store.start(processes.cpu_group)
        (folder / ".step-000000005.tmp").mkdir()
        store.publish(folder / ".step-000000005.tmp", "step-000000005", 1, processes.cpu_group)
    assert [path.name for path in folder.iterdir()] == ["step-000000005"]
    assert not (folder / "step-000000005").is_symlink()
    assert (mine / "notes").exists()


def test_a_disk_that_is_still_full_when_the_run_is_resumed(folder: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}

    before = contents()
    process = cetnet(folder, *COMMANDS[0], file_size=10)
    _, stderr = process.communicate()
    assert_refused((process.returncode, stderr), "run: cannot be written (File too large); make room")
    assert contents() == before


@pytest.mark.parametrize("resume", [True, False])
def test_a_disk_that_no_checkpoint_fits_on(
    folder: Path, resume: bool, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str]]
) -> None:
    config = yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))
    weights = sum(tensor.nbytes for tensor in CETNet(make_schema(), RunConfig(**config).model).parameters())
    almost = shutil.disk_usage(folder)._replace(free=weights)  # not enough for the optimizer's state
    monkeypatch.setattr(shutil, "disk_usage", lambda _: almost)
    if not resume:
        shutil.rmtree("run")
    code, stderr = run("train", "experiment.yaml", *["--resume"] * resume)
    assert code == 2
    assert re.search(r"cetnet: run/checkpoints: a checkpoint takes [\d.]+ KiB and the disk has", stderr)
    assert resume == Path("run").exists()
