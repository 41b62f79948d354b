"""What can be wrong with a training run and shows without torch, which takes seconds to load."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from cetnet.models.rules import indivisible
from cetnet.trainer.check_data import check_same_meaning
from cetnet.trainer.config import RunConfig, TeacherConfig
from cetnet.trainer.data.dataset import Dataset, load_schema
from cetnet.trainer.data.statistics import check_values, is_null, only_value
from cetnet.trainer.errors import UserError
from cetnet.trainer.run_folder import RESULT, check_free, load_run, teacher_files


def check_settings(config: RunConfig, world_size: int, resume: bool) -> Dataset:
    """The split that is trained on; raises UserError for whatever is wrong beside the model.

    The components of `config` may be unresolved (`load_config`).
    """
    check_free(config.run_dir, resume)
    if config.training.nonfinite == "skip" and config.optimizer.sparse.kind == "adam":
        raise UserError(
            "training.nonfinite=skip cannot leave a step out with optimizer.sparse.kind=adam, whose momentum moves "
            "rows without a gradient; use rowwise_adagrad, adagrad or sgd"
        )
    if complaint := indivisible(
        batch_size=config.data.batch_size,
        lanes=config.data.shuffled_lanes,
        world_size=world_size,
    ):
        raise UserError(complaint)
    train = _check_splits(config)
    if config.training.teacher:
        _check_teachers(config, config.training.teacher, train, resume)
    return train


def _check_teachers(config: RunConfig, teacher: TeacherConfig, train: Dataset, resume: bool) -> None:
    """Raise UserError for a teacher that is no finished run, or takes the rows for others."""
    for number, run in enumerate(teacher.runs, 1):
        if resume and teacher_files(config.run_dir, number).record.exists() and not run.exists():
            continue
        try:
            _, schema = load_run(run, resolve=False)
        except UserError as error:
            raise UserError(f"training.teacher: {error}") from None
        if not (run / RESULT).exists():
            raise UserError(
                f"training.teacher: {run} is not finished; finish it with `cetnet train ... --resume`"
            )
        check_same_meaning(run, schema, config.data.path, train.schema)


def _check_splits(config: RunConfig) -> Dataset:
    """Of every split that the run will read, as far as its files' footers tell; returns that which is trained on."""
    data, evaluation = config.data, config.evaluation
    names = {data.split, *evaluation.splits}
    if evaluation.every_steps or evaluation.every_epoch:
        names.add(evaluation.validation)
    splits = {name: Dataset(data.path, name, data.bad_rows) for name in sorted(names)}
    for name, split in splits.items():
        cut_short = name == data.split and (config.training.max_steps or evaluation.early_stopping)
        check_values(split, None if cut_short else data.bad_rows_limit)
    train = splits[data.split]
    if train.schema.weight and only_value(train, train.schema.weight) == 0:
        raise UserError(
            f"{data.path / data.split}: the weight ({train.schema.weight!r}) is 0 in every row, so nothing can be "
            "learned; fix it and prepare the data again, or take `weight` out of schema.yaml"
        )
    if evaluation.early_stopping:
        _check_monitor(evaluation.early_stopping.monitor, splits[evaluation.validation])
    return train


def _check_monitor(monitor: str, validation: Dataset) -> None:
    """Raise UserError if the monitored metric is known to be undefined on the split."""
    metric, schema = monitor.split("/")[0], validation.schema
    label = only_value(validation, schema.label)
    why = None
    if schema.weight and only_value(validation, schema.weight) == 0:
        why = f"the weight ({schema.weight!r}) is 0 in every row"
    elif metric in ("ne", "auc", "gauc") and label is not None:
        why = f"the label ({schema.label!r}) is {label:g} in every row"
    elif metric == "gauc" and schema.group and is_null(validation, schema.group):
        why = f"the group ({schema.group!r}) is null in every row"
    if why:
        raise UserError(
            f"{validation.path / validation.split}: {why}, so evaluation.early_stopping.monitor={monitor!r} is "
            "undefined; monitor another metric or split (evaluation.validation), or leave early stopping out"
        )


def check_scored(run: Path, data: Path, split: str, *, labelled: bool = True) -> Dataset:
    """The split that a run is to score; raises UserError if this is no run, or the data isn't as the run's.

    Only metrics need rows that are `labelled`.
    """
    _, schema = load_run(run, resolve=False)
    check_same_meaning(run, schema, data, load_schema(data))
    dataset = check_labelled(partial(Dataset, data, split), labelled)
    check_values(dataset)
    return dataset


def check_labelled(rows: Callable[..., Dataset], labelled: bool) -> Dataset:
    """`rows(labelled=labelled)`; a UserError says so if what it raised is that there are no labels."""
    try:
        return rows(labelled=labelled)
    except UserError:
        if labelled and not (unlabelled := rows(labelled=False)).has(label := unlabelled.schema.label):
            raise UserError(
                f"{unlabelled.place}: no column of numbers {label!r} with the label, which metrics need; "
                "`cetnet predict` scores such rows"
            ) from None
        raise
