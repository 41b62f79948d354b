"""What would end a study's runs or its report, found before the first run starts."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from cetnet.benchmarks.study.definition import (
    PROGRESSIVE_NE,
    REPORT_FILES,
    Run,
    Study,
    refuse_changed,
    runs_of,
)
from cetnet.benchmarks.study.jobs import failure
from cetnet.benchmarks.study.teachers import is_student
from cetnet.trainer.check_settings import check_settings
from cetnet.trainer.config import RunConfig, parse_config, read_settings
from cetnet.trainer.console import console, quieten
from cetnet.trainer.data.dataset import Dataset, load_schema
from cetnet.trainer.data.statistics import only_value
from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import tell
from cetnet.trainer.files import check_writable
from cetnet.trainer.processes.fork_server import ask
from cetnet.trainer.processes.launcher import end_with_parent, load_libraries
from cetnet.trainer.run_folder import check_folder


def check_study(path: Path) -> None:
    """Raise UserError for a run that would be refused, or couldn't be reported, and for a report's place.

    Needs no torch; what does is left to `check_runs`.
    """
    study = Study.load(path)
    runs = runs_of(study, path)
    refuse_changed(runs, path)
    check_folder(study.folder, "out")
    for name in REPORT_FILES:
        check_writable(study.folder / name)
    checked = set()
    for run, config in check_configurations(study, runs, path):
        # What `check_settings` looks at; variants that share it, and seeds, are checked once.
        parts = config.model_dump_json(
            exclude={"run_dir": True, "model": True, "checkpoint": True, "training": {"seed"}}
        )
        if parts in checked:
            continue
        checked.add(parts)
        with _named(run, path):
            check_settings(_with_made_teachers(config, run), run.nproc, resume=run.folder.exists())
            reported = Dataset(config.data.path, study.split)
        if (label := only_value(reported, reported.schema.label)) is not None:
            console.print(
                f"WARNING: {reported.path / study.split}: every row has the label {label:g}, so the report will have "
                "neither NE, AUC nor gains",
                style="bold red",
            )


def _with_made_teachers(config: RunConfig, run: Run) -> RunConfig:
    """The configuration, without teachers if they are runs of this study that aren't finished."""
    if run.ready:
        return config
    return config.model_copy(update={"training": config.training.model_copy(update={"teacher": None})})


def check_configurations(study: Study, runs: Sequence[Run], path: Path) -> list[tuple[Run, RunConfig]]:
    """The runs that aren't finished, and their configurations; raises UserError for one that can't be reported."""
    checked = []
    for run in runs:
        where, settings = _where(run, path), read_settings(run.base, run.overrides)
        if study.monitored == PROGRESSIVE_NE and is_student(settings):
            raise UserError(
                f"{where}: a student has no progressive NE, as its teachers have seen the rows to come, so no number "
                "of seeds would decide it; change until.monitor to ne, or leave it to a study of its own"
            )
        if run.finished:
            continue
        config = parse_config(settings, where, resolve=False)
        if study.split not in config.evaluation.splits:
            raise UserError(
                f"{where}: the study reports split {study.split!r}, which evaluation.splits "
                f"({', '.join(config.evaluation.splits) or 'empty'}) lacks; add it there, or change `split`"
            )
        checked.append((run, config))
    return checked


def check_runs(runs: Sequence[Run], path: Path) -> None:
    """Raise UserError for a run whose model, plan or checkpoints would be refused; after `check_study`.

    That needs torch: it happens in a fork of the server that the runs will be forks of. Leaves nothing behind.
    """
    mistake, code = ask(_check_and_tell, (runs, path), runs[0].nproc)
    if mistake is not None:
        raise mistake
    if failed := failure(code):
        raise UserError(
            f"{path}: its runs could not be checked ({failed}); fix that and start the study again"
        )


def _check_and_tell(asked: tuple[tuple[Sequence[Run], Path], Connection]) -> None:
    (runs, path), sender = asked
    end_with_parent(signal.SIGKILL)  # the server, which ends with the study
    quieten()
    try:
        load_libraries()
        _check_models(runs, path)
    except UserError as error:
        sender.send(error)
    except Exception as error:
        sys.exit(tell(error))


def _check_models(runs: Sequence[Run], path: Path) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(runs[0].nproc)  # as the runs' ranks will have it
    built: set[str] = set()
    for run in runs:
        where = _where(run, path)
        try:
            config = parse_config(read_settings(run.base, run.overrides), where)
            with _named(run, path):
                _check_model(config, run, built)
        except UserError:
            raise
        except Exception as error:
            tell(error)
            raise UserError(
                f"{where}: could not be checked, as said above; fix it and start the study again"
            ) from error


def _check_model(config: RunConfig, run: Run, built: set[str]) -> None:
    from cetnet.trainer.check_run import build_checked, check_begun
    from cetnet.trainer.processes.distributed import resolve_device
    from cetnet.trainer.session import compile_components, plan_model

    # Seeds of a variant have one model.
    parts = config.model_dump_json(exclude={"run_dir": True, "checkpoint": True, "training": {"seed"}})
    if parts not in built:
        built.add(parts)
        schema, device = load_schema(config.data.path), resolve_device(config.training.device)
        model = build_checked(config, schema)
        plan_model(model, config, schema, device.type, run.nproc, run.nproc)
        if config.training.compile:
            compile_components(model, device)
    check_begun(config, resume=run.folder.exists())


def _where(run: Run, path: Path) -> str:
    return f"{path}, variant {run.variant!r}"


@contextmanager
def _named(run: Run, path: Path) -> Iterator[None]:
    """Have a mistake that ends this block name the study and the variant."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{_where(run, path)}: {error}") from None
