"""What would end a tuning, found before the first trial starts."""

import signal
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

from cetnet.benchmarks.study.definition import Study
from cetnet.benchmarks.study.jobs import failure
from cetnet.benchmarks.study.teachers import teacher_variants
from cetnet.benchmarks.tune.space import Space, asks_components, representatives
from cetnet.benchmarks.tune.trials import Trials
from cetnet.models.registry import COMPONENTS, component_class
from cetnet.trainer.check_settings import check_settings
from cetnet.trainer.console import quieten
from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import tell
from cetnet.trainer.processes.fork_server import ask
from cetnet.trainer.processes.launcher import end_with_parent, load_libraries
from cetnet.trainer.run_folder import check_folder

Fields = Callable[[int], Mapping[str, frozenset[str]]]
"""Tells what keys each kind of component has; the argument is the number of processes of a run."""


def check_optuna() -> None:
    """Raise UserError if Optuna isn't installed."""
    if find_spec("optuna") is None:
        raise UserError("cetnet tune draws its trials with Optuna; install it: pip install 'cetnet[tune]'")


def check_tuning(path: Path) -> None:
    """Raise UserError for values that no run would take, without torch: what needs it is left to `check_runs`."""
    study = Study.load(path)
    check_folder(study.folder, "out")
    for trials in trials_of(study, path):
        for number, values in enumerate(representatives(trials.tune.space_of(trials.variant))):
            run = trials.make(trials.tune.trials + number, values).runs[0]
            try:
                check_settings(trials.config(run), run.nproc, resume=False)
            except UserError as error:
                raise UserError(f"{path}, tune, variant {trials.variant!r}: {error}") from None


def trials_of(study: Study, path: Path, fields: Mapping[str, frozenset[str]] | None = None) -> list[Trials]:
    """What makes the trials of each variant but those that another one teaches: a trial has no such teacher.

    Raises UserError if the study says nothing of tuning.
    """
    if study.tune is None:
        raise UserError(f"{path}: there is no `tune` section, which says what to tune")
    return [
        Trials(study, path, variant, fields)
        for variant, overrides in study.variants.items()
        if not teacher_variants(study.common | overrides)
    ]


def spaces_of(study: Study, path: Path, fields: Fields) -> list[tuple[Trials, Space]]:
    """What makes the trials of each variant, and what is tuned in it; raises UserError as `trials_of`."""
    known = fields(study.nproc) if study.tune and asks_components(study.tune) else {}
    return [(trials, trials.space()) for trials in trials_of(study, path, known)]


def component_fields(nproc: int) -> Mapping[str, frozenset[str]]:
    """What keys each kind of component has that is registered here; asked in a fork, as it needs torch."""
    found, code = ask(_tell_fields, None, nproc)
    if failed := failure(code):
        raise UserError(f"the keys of the components could not be read ({failed}), as said above")
    return found or {}


def _tell_fields(asked: tuple[None, Connection]) -> None:
    sender = asked[1]
    end_with_parent(signal.SIGKILL)
    quieten()
    try:
        load_libraries()
        sender.send({kind: frozenset(component_class(kind).Config.model_fields) for kind in COMPONENTS})
    except Exception as error:
        sys.exit(tell(error))
