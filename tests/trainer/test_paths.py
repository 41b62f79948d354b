"""What a path in a file or an override means, from wherever it is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cetnet.trainer.config import RunConfig, load_config, parse_config
from cetnet.trainer.errors import UserError
from cetnet.trainer.run_folder import check_resumable, load_run

SCHEMA = {"label": "click", "tables": {"item": 5}, "features": [{"name": "item", "kind": "categorical"}]}


def config(**sections: Any) -> RunConfig:
    model = {"components": {"a": {"kind": "dnn"}}}
    return parse_config({"data": {"path": "data"}, "model": model, **sections}, "one.yaml", resolve=False)


def test_home_and_variables_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    made = config(run_dir="~/runs/a", data={"path": "$SCRATCH/clicks"}, checkpoint={"path": "${SCRATCH}/c"})
    assert (str(made.run_dir), str(made.data.path)) == ("/home/me/runs/a", "/scratch/clicks")
    assert made.checkpoint.path == "/scratch/c"
    assert config(checkpoint={"path": "s3://bucket/~x"}).checkpoint.path == "s3://bucket/~x"
    assert str(config(run_dir="~nobody-of-that-name/a").run_dir) == "~nobody-of-that-name/a"
    assert str(config(run_dir="a~/$nowhere$/$").run_dir) == "a~/$nowhere$/$"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was started in `home`, with its checkpoints in `home/kept`; we are in `away`."""
    for folder in ("home/run", "home/kept", "away/kept"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "away")
    folder = tmp_path / "home/run"
    settings = {
        "run_dir": "run",
        "data": {"path": "data"},
        "model": {"components": {"a": {"kind": "dnn"}}},
        "checkpoint": {"path": "kept"},
    }
    for name, content in (("config.yaml", settings), ("schema.yaml", SCHEMA)):
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "environment.json").write_text(
        json.dumps({"directory": str(tmp_path / "home")}), encoding="utf-8"
    )
    return folder


def test_a_run_finds_its_checkpoints_from_another_directory(run: Path) -> None:
    assert load_run(run, resolve=False)[0].checkpoint.path == str(run.parent / "kept")
    (run.parent / "kept").rmdir()  # as in a container, or after a move
    assert load_run(run, resolve=False)[0].checkpoint.path == "kept"
    (run / "environment.json").write_text("[]", encoding="utf-8")
    assert load_run(run, resolve=False)[0].checkpoint.path == "kept"


def test_a_run_is_resumed_with_its_own_checkpoints_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load_config(run / "config.yaml", [f"run_dir={run}"])
    with pytest.raises(
        UserError, match=r"checkpoint.path was '.*/home/kept' and is now 'kept', from .*/away"
    ):
        check_resumable(here)
    check_resumable(
        load_config(run / "config.yaml", [f"run_dir={run}", f"checkpoint.path={run.parent}/kept"])
    )
    monkeypatch.chdir(run.parent)
    check_resumable(here)
