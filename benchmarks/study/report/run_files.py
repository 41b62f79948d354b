"""What a report reads of a finished run's folder: checked, since anybody may have changed it."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cetnet.benchmarks.study.definition import Run
from cetnet.trainer.errors import UserError, validation_message
from cetnet.trainer.yaml_files import read_yaml

Folders = Mapping[str, Mapping[int, Path]]
"""Finished run folders of each variant that has any, by seed."""


class _Read(BaseModel):
    model_config = ConfigDict(strict=True)


class _Parameters(_Read):
    tables: int
    dense: int


class _Result(_Read):
    rows: int
    seconds: float
    rows_per_second: float
    parameters: _Parameters
    table_bytes: float | None = None
    peak_memory: float | None = None
    multiply_adds: float | None = None
    train: dict[str, float | None] = {}
    splits: dict[str, dict[str, float | None]]


class _Environment(_Read):
    time: datetime
    host: str
    machine: str
    python: str
    world_size: int
    commit: str | None
    versions: dict[str, str]


def read_result(folder: Path) -> dict[str, Any]:
    """A run's result.json; raises UserError if it can't be read, or isn't one."""
    return _read(folder / "result.json", _Result)


def read_environment(folder: Path) -> dict[str, Any]:
    """A run's environment.json; raises UserError if it can't be read, or isn't one."""
    return _read(folder / "environment.json", _Environment)


def read_split(folder: Path, split: str) -> dict[str, Any]:
    """A run's result.json; raises UserError as `read_result`, and if it lacks the split."""
    result = read_result(folder)
    if "rows" not in result["splits"].get(split, ()):
        known = ", ".join(result["splits"]) or "none"
        raise UserError(
            f"{folder}: not evaluated on split {split!r}, only on {known}; change the study's split"
        )
    return result


def predictions(folders: Mapping[int, Path], split: str) -> dict[int, Path]:
    """The predictions' file of each run, by seed."""
    return {seed: folder / "predictions" / f"{split}.parquet" for seed, folder in folders.items()}


def folders_of(runs: Iterable[Run]) -> dict[str, dict[int, Path]]:
    """The folders of the runs that are finished, by variant and seed."""
    folders: dict[str, dict[int, Path]] = {}
    for run in runs:
        if run.finished:
            folders.setdefault(run.variant, {})[run.seed] = run.folder
    return folders


def read_config(folder: Path) -> dict[str, Any]:
    """A run's configuration, as it was when it started."""
    return read_yaml(folder / "config.yaml")


def _read(path: Path, model: type[_Read]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        model.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path}: {validation_message(error)}; repeat the run") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); repeat the run") from None
    return content
