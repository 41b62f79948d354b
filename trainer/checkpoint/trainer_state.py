"""What `trainer.json` of a checkpoint holds beside parameters and optimizers, and whether a run can go on from it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cetnet.models.schema import Schema
from cetnet.trainer.check_data import other_encoding, other_values
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.config import RunConfig, parse_config
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.progressive_ne import ProgressiveNE
from cetnet.trainer.run_folder import check_same_run, first_difference

_DIGESTS = {"vocabularies", "encoding"}


@dataclass
class TrainState:
    """The state of a run beside parameters and metrics: where it is."""

    step: int = 0
    seconds: float = 0.0
    plateau: float = 1.0
    best: float | None = None
    bad_evaluations: int = 0
    stopped: bool = False
    evaluation_left: bool = False  # the step's evaluation was cut short, and comes first on resuming
    skipped_steps: int = 0  # that nothing was learned from: `training.nonfinite`
    skipped_rows: int = 0
    quarantined: int = 0


def trainer_state(
    train_state: TrainState, ne: ProgressiveNE, config: RunConfig, dataset: Dataset
) -> dict[str, Any]:
    """The content of `trainer.json`."""
    return {
        "progress": vars(train_state).copy(),
        "ne": ne.state_dict(),
        "config": config.model_dump(mode="json"),
        **identity(dataset),
    }


def read_train_state(
    state: dict[str, Any], config: RunConfig, dataset: Dataset, checkpoint: Place
) -> TrainState:
    """Where the run of a checkpoint was.

    Raises:
        UserError: it was a run of another configuration, on other data, or by another version of this program.
    """
    check_same_run(_read_config(state, config, checkpoint), config, checkpoint)
    _check_same_data(state, dataset, checkpoint, config.run_dir)
    try:
        return _decided_by_numbers(TrainState(**state["progress"]))
    except TypeError as error:
        raise UserError(
            f"{checkpoint}: its trainer.json is of another version of this program ({error}); use that version or "
            "choose another run_dir=..."
        ) from None


def _decided_by_numbers(state: TrainState) -> TrainState:
    """The state without what an undefined metric decided, as earlier versions let it."""
    if state.best is None or math.isfinite(state.best):
        return state
    return replace(state, best=None, bad_evaluations=0, plateau=1.0, stopped=False)


def _read_config(state: dict[str, Any], now: RunConfig, checkpoint: Place) -> RunConfig:
    """The configuration in a checkpoint, of which no component is imported that isn't in the present one."""
    known = {component.kind for component in now.model.components.values()}
    for kind in _kinds(state.get("config")):
        if "." in str(kind) and kind not in known:
            raise UserError(
                f"{checkpoint}: cannot resume, it has a component of kind {kind!r}; use the same configuration or "
                "another run_dir"
            )
    return parse_config(state.get("config"), checkpoint)


def _kinds(settings: Any) -> Iterator[Any]:
    """Whatever is called `kind`, at any depth."""
    if isinstance(settings, dict):
        if "kind" in settings:
            yield settings["kind"]
        settings = list(settings.values())
    if isinstance(settings, list):
        for each in settings:
            yield from _kinds(each)


def identity(dataset: Dataset) -> dict[str, Any]:
    """What a step means: the schema, and the rows of each row group in order."""
    schema = dataset.schema
    return {
        "schema": schema.model_dump(mode="json", exclude=_DIGESTS),
        "vocabularies": schema.vocabularies,
        "encoding": schema.encoding,
        "row_groups": [group.num_rows for group in dataset.row_groups],
    }


def check_own_meaning(run: Path, schema: Schema, state: dict[str, Any]) -> None:
    """Raise UserError if the files of a run folder that say what ids stand for are not those it was trained with."""
    for digest in sorted(_DIGESTS):
        if state.get(digest) is not None and state[digest] != getattr(schema, digest):
            raise UserError(
                f"{run}: its checkpoints were trained with other {digest} than its schema.yaml says; restore "
                "schema.yaml, encoding.yaml and vocabularies/ from the run's dataset"
            )


def _check_same_data(state: dict[str, Any], dataset: Dataset, checkpoint: Place, run: Path) -> None:
    now = identity(dataset)
    before = {key: state.get(key) for key in now}
    for digest in _DIGESTS:  # data that an earlier version prepared has none
        if before[digest] is None or now[digest] is None:
            del before[digest], now[digest]
    changed = None
    if isinstance(before.get("vocabularies"), dict):
        other = other_values(run, before["vocabularies"], dataset.path, now["vocabularies"])
        changed = other and other.what
    if changed is None and before.get("encoding") != now.get("encoding"):
        changed = other_encoding(run, dataset.path)
    if changed := changed or first_difference(before, now):
        raise UserError(
            f"{checkpoint}: the data changed since it was written, so its step means other rows ({changed}); "
            "restore the data or choose another run_dir=..."
        )
