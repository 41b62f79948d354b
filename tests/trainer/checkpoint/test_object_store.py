"""Checkpoints in an object store: a store that refuses requests, processes that die in an upload, damaged files."""

import io
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.multiprocessing.spawn import ProcessExitedException

import cetnet.trainer.train
from cetnet.benchmarks.study.definition import Run
from cetnet.benchmarks.study.report.spectra import read_spectra
from cetnet.trainer.checkpoint.object_path import parse_place
from cetnet.trainer.cli import main
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import Processes, process_group
from tests.bucket import Bucket, file_of, keys
from tests.data import write_dataset
from tests.processes import run_processes, run_settings, train_all
from tests.trainer.checkpoint.test_checkpoint import Malicious, point_all_tensors_to, seal
from tests.trainer.checkpoint.test_resume import rows_of, train_with_ledger

ROWS = 190
FILES = [".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json", "trainer.json"]
MODEL = {"components": {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]}}}
COMMANDS = [
    ["train", "experiment.yaml", "--resume"],
    ["evaluate", "killed", "data"],
    ["predict", "killed", "data", "--out", "scores.parquet"],
]


def settings(run: str, path: str, **checkpoint: Any) -> dict[str, Any]:
    """Twelve steps, of which every second is saved."""
    checkpoint = {"path": path, "every_steps": 2, "keep": 2} | checkpoint
    data = {"path": "data", "batch_size": 16, "lanes": 4}
    return run_settings(Path("data"), Path(run), model=MODEL, checkpoint=checkpoint) | {"data": data}


def places(url: str) -> dict[str, list[str]]:
    """The files of each checkpoint in a place."""
    prefix, found = Bucket._strip_protocol(url) + "/", {}
    for key in keys():
        if key.startswith(prefix):
            place, _, file = key.removeprefix(prefix).partition("/")
            found.setdefault(place, []).append(file)
    return found


def on_two_ranks(processes: Processes, folder: Path) -> None:
    os.chdir(folder)
    bucket_refuses_an_upload(processes)
    processes_have_no_store_in_common(processes)
    killed_in_an_upload(processes)


def bucket_refuses_an_upload(processes: Processes) -> None:
    def refuse(request: str, key: str) -> None:
        if request == "put" and key.endswith("step-000000004.000002/__1_0.distcp"):
            raise RuntimeError("503: slow down")

    run = settings("refused", "bucket://b/refused")
    Bucket.before = refuse
    with pytest.raises(UserError) as error:
        train_all(processes, [run])
    for text in ("bucket://b/refused/step-000000004.000002/__1_0.distcp: ", "503: slow down", "--resume"):
        assert text in str(error.value)
    assert "\n" not in str(error.value)
    Bucket.before = None
    torch.distributed.barrier()
    assert places("bucket://b/refused") == {"step-000000002.000001": FILES}
    assert not list(Path("refused/checkpoints").iterdir())
    torch.distributed.barrier()
    train_all(processes, [run], resume=True)
    assert places("bucket://b/refused") == {"step-000000010.000005": FILES, "step-000000012.000006": FILES}


def processes_have_no_store_in_common(processes: Processes) -> None:
    with pytest.raises(
        UserError, match=r"step-000000002\.000001: __1_0\.distcp has 0 of \d+ bytes after its"
    ):
        train_all(processes, [settings("apart", "memory://apart")])


def killed_in_an_upload(processes: Processes) -> None:
    def kill(request: str, key: str) -> None:
        if request == "put" and key.endswith("step-000000006.000003/__1_0.distcp"):
            until(lambda: f"{key.rpartition('/')[0]}/.metadata" in keys())
            os.kill(os.getpid(), signal.SIGKILL)

    Bucket.before = kill
    train_with_ledger(processes, settings("killed", "bucket://b/killed"), Path("before"), 0, None)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_dataset(folder / "data", {"train": ROWS, "validation": 60, "test": 60}, row_group_size=40)
    for name in ("buckets", "before", "after"):
        (folder / name).mkdir()
    experiment = settings("killed", "bucket://b/killed")
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BUCKETS", str(folder / "buckets"))
    monkeypatch.setattr(Bucket, "before", None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `cetnet ARGUMENTS` in this process, which must refuse; returns the line that it says."""

    def run(*arguments: str, code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["cetnet", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        stderr = capfd.readouterr().err
        assert int(stop.value.code or 0) == code
        if code:
            (line,) = stderr.splitlines()
            assert line.startswith("cetnet: ")
            return line
        return stderr

    return run


@pytest.mark.timeout(600)
def test_survives(folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_processes(on_two_ranks, 2, folder)
    left = places("bucket://b/killed")
    assert ".metadata" in left.pop("step-000000006.000003")  # of which something is there, but no manifest
    assert left == {"step-000000002.000001": FILES, "step-000000004.000002": FILES}
    # What is put there ends here.
    monkeypatch.setattr(cetnet.trainer.train, "run_pipeline", cetnet.trainer.train.run_pipeline)
    before = rows_of(Path("before"), 4)
    with process_group("cpu") as processes:
        train_with_ledger(processes, settings("killed", "bucket://b/killed"), Path("after"), 4, None)
    assert sorted((before + rows_of(Path("after"), 12)).items()) == [(row, 1) for row in range(ROWS)]
    one_rank = [file for file in FILES if file != "__1_0.distcp"]
    steps = {"step-000000010.000006": one_rank, "step-000000012.000007": one_rank}
    assert places("bucket://b/killed") == steps
    assert not list(Path("killed/checkpoints").iterdir())
    assert_used_from_there(run)


def assert_used_from_there(run: Callable[..., str]) -> None:
    Path("killed/result.json").unlink()
    train, evaluate, predict = COMMANDS
    run(*predict, code=0)
    study_run = Run(
        "a", 1, Path("killed"), Path(), [], 1, {"overrides": {"checkpoint.path": "bucket://b/killed"}}
    )
    spectra = read_spectra(study_run)
    assert spectra
    assert spectra.checkpoint == "step-000000012.000007"
    assert "has the checkpoints of a run" in run("train", "experiment.yaml", "run_dir=lost")
    line = run(*train, "run_dir=lost", "optimizer.dense.lr=1")
    assert "cannot resume, optimizer.dense.lr was 0.001 and is now 1.0" in line
    assert not Path("lost").exists()

    newest = "bucket://b/killed/step-000000012.000007"
    shard = file_of(f"{newest}/__0_0.distcp")
    content = shard.read_bytes()
    for command, damage, found in (
        (train, content[:100], "has 100 of "),
        (evaluate, content[:-1] + b"?", "was altered"),
    ):
        shard.write_bytes(damage)
        line = run(*command)
        assert f"{newest}: damaged (__0_0.distcp {found}" in line
        assert "go back to step-000000010.000006" in line
    shard.write_bytes(content)

    def refuse(request: str, key: str) -> None:
        if request == "get" and key.endswith(".distcp"):
            raise RuntimeError("token expired")

    Bucket.before = refuse
    line = run(*evaluate)
    assert "token expired" in line
    assert "damaged" not in line  # so that nobody removes it
    Bucket.before = None
    malicious_files_are_not_run(run, newest)


def malicious_files_are_not_run(run: Callable[..., str], checkpoint: str) -> None:
    """The same with a manifest that agrees: an upload of what was made locally."""
    marker, copy, payload = Path("marker"), Path("copy"), io.BytesIO()
    copy.mkdir()

    def upload() -> None:
        for file in copy.iterdir():
            file_of(f"{checkpoint}/{file.name}").write_bytes(file.read_bytes())

    for name in places("bucket://b/killed")[checkpoint.rpartition("/")[2]]:
        (copy / name).write_bytes(file_of(f"{checkpoint}/{name}").read_bytes())
    honest = (copy / ".metadata").read_bytes()
    (copy / ".metadata").write_bytes(pickle.dumps(Malicious(marker)))
    seal(copy)
    upload()
    for command in COMMANDS[:2]:
        assert "posix.system" in run(*command)
    (copy / ".metadata").write_bytes(honest)
    torch.save(Malicious(marker), payload)
    (copy / "__0_0.distcp").write_bytes(payload.getvalue())
    point_all_tensors_to(copy, len(payload.getvalue()))
    upload()
    for command in COMMANDS[:2]:
        assert "Weights only load failed" in run(*command)
    assert not marker.exists()


def test_the_best_is_there_until_a_better_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are never written twice, and of each name only the last is left."""
    uploads: list[str] = []

    def watch(request: str, key: str) -> None:
        if request == "put" and key.endswith("/manifest.json"):
            uploads.append(key.split("/")[-2])
            bests = [place for place in places("bucket://b/best") if place.startswith("best.")]
            assert len(
                [place for place in bests if "manifest.json" in places("bucket://b/best")[place]]
            ) == bool([place for place in uploads[:-1] if place.startswith("best.")])

    monkeypatch.setattr(Bucket, "before", watch)
    evaluation = {"splits": [], "every_epoch": True, "early_stopping": {"monitor": "ne/fused", "patience": 1}}
    stopping = settings("best", "bucket://b/best", every_steps=12, keep=1) | {"evaluation": evaluation}
    with process_group("cpu") as processes:
        train_all(processes, [stopping | {"training": {"epochs": 3, "device": "cpu"}}])
    bests = [place for place in uploads if place.startswith("best.")]
    assert len(bests) > 1
    assert len(set(uploads)) == len(uploads)
    assert list(places("bucket://b/best")) == [bests[-1], uploads[-1]]


def test_mistakes_are_found_before_anything_starts(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: str, key: str) -> None:
        raise PermissionError(f"403: no {request} of {key} for you")

    monkeypatch.setattr(Bucket, "before", refuse)
    for path, named in {
        "ossb://b/run": "Protocol not known",
        "oss://b/run": "Install ossfs",
        "bucket://b/run*": "no '*'",
        "simplecache::bucket://b/run": "no '::'",
        "bucket://b/run": "bucket://b/run/probe-0: ",
        "experiment.yaml/checkpoints": "choose another checkpoint.path=",
    }.items():
        line = run("train", "experiment.yaml", "run_dir=new", f"checkpoint.path={path}")
        assert named in line
        assert path in line
        assert not Path("new").exists()
        assert not [key for key in keys() if "run" in key]


def test_a_path_may_be_local(folder: Path) -> None:
    assert parse_place("a/b", "key") == Path("a/b")
    assert parse_place(f"file://{folder}", "key") == folder
