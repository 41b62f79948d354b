"""What would end a study's runs or its report, found before the first run starts."""

from collections.abc import Sequence
from pathlib import Path

from cetnet.benchmarks.study.definition import REPORT_FILES, Run, Study, refuse_changed, runs_of
from cetnet.trainer.check_settings import check_settings
from cetnet.trainer.config import RunConfig, parse_config, read_settings
from cetnet.trainer.console import console
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.statistics import only_value
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import check_writable
from cetnet.trainer.run_folder import check_folder


def check_study(path: Path) -> None:
    """Raise UserError for a run that would be refused, or couldn't be reported, and for a report's place.

    Needs no torch, so it leaves out what only a component's class knows.
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
        try:
            check_settings(config, run.nproc, resume=run.folder.exists())
            reported = Dataset(config.data.path, study.split)
        except UserError as error:
            raise UserError(f"{path}, variant {run.variant!r}: {error}") from None
        if (label := only_value(reported, reported.schema.label)) is not None:
            console.print(
                f"WARNING: {reported.path / study.split}: every row has the label {label:g}, so the report will have "
                "neither NE, AUC nor gains",
                style="bold red",
            )


def check_configurations(study: Study, runs: Sequence[Run], path: Path) -> list[tuple[Run, RunConfig]]:
    """The runs that aren't finished, and their configurations; raises UserError for one that can't be reported."""
    checked = []
    for run in runs:
        if run.finished:
            continue
        where = f"{path}, variant {run.variant!r}"
        config = parse_config(read_settings(run.base, run.overrides), where, resolve=False)
        if study.split not in config.evaluation.splits:
            raise UserError(
                f"{where}: the study reports split {study.split!r}, which evaluation.splits "
                f"({', '.join(config.evaluation.splits) or 'empty'}) lacks; add it there, or change `split`"
            )
        checked.append((run, config))
    return checked
