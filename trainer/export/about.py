"""`about.json`: what an export is of, how good that was, and what its files were."""

import json
import platform
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any

import cetnet
from cetnet.models.schema import Schema
from cetnet.trainer.config import RunConfig
from cetnet.trainer.export.place import ABOUT
from cetnet.trainer.export.verify import TOLERANCE
from cetnet.trainer.files import without_nonfinite
from cetnet.trainer.run_folder import RESULT
from cetnet.trainer.versions import installed_versions

FORMAT = 1
_OF_DATA = ("title", "source", "license", "licence", "command", "split_rule")


def describe(
    run: Path, config: RunConfig, schema: Schema, state: dict[str, Any], checkpoint: str
) -> dict[str, Any]:
    """What there is to say of a run's model at a checkpoint, of which `state` is the trainer's."""
    step = int(state["progress"]["step"])
    metrics, rows = _metrics(run, step)
    return {
        "format": FORMAT,
        "run": run.resolve().name,
        "checkpoint": checkpoint,
        "step": step,
        "rows": rows,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "tolerance": TOLERANCE,
        "versions": {
            "cetnet": cetnet.__version__,
            "python": platform.python_version(),
            **installed_versions(),
        },
        "outputs": config.model.outputs,
        "components": {name: component.kind for name, component in config.model.components.items()},
        "metrics": metrics,
        "data": _data(run),
        "table_rows": schema.tables,
    }


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an export but `about.json`, by its path in the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / ABOUT:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = file_digest(file, "sha256").hexdigest()
    return found


def _metrics(run: Path, step: int) -> tuple[dict[str, Any], int | None]:
    """Metrics of the model of a step by split, of training under `train`, and the rows seen until then, if known."""
    metrics: dict[str, Any] = {}
    rows = None
    for line in _lines(run / "metrics.jsonl"):
        if line.get("step") != step:
            continue
        kind, numbers = line.get("kind"), {name: v for name, v in line.items() if "/" in name}
        if kind == "train":
            metrics["train"], rows = numbers, line.get("rows")
        elif "split" in line:
            metrics[str(line["split"])] = {"rows": line.get("rows"), **numbers}
    result = _json(run / RESULT)
    if result.get("steps") == step:
        rows = result.get("rows")
        metrics |= result.get("splits", {})
    return without_nonfinite(metrics), rows


def _data(run: Path) -> dict[str, Any]:
    card = _json(run / "card.json")
    return {name: card[name] for name in _OF_DATA if name in card}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON that can be read."""
    found = []
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    found.append(json.loads(line))
                except ValueError:  # as a crash leaves it
                    continue
    except OSError:
        return []
    return [each for each in found if isinstance(each, dict)]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
