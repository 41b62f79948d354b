"""What can be wrong with a training run and shows without torch, which takes seconds to load."""

from pathlib import Path

from cetnet.models.rules import indivisible
from cetnet.models.schema import Schema
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import Dataset, load_schema
from cetnet.trainer.data.statistics import check_values, is_null, only_value
from cetnet.trainer.errors import UserError
from cetnet.trainer.run_folder import check_free, load_run


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
    return _check_splits(config)


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
    _check_same(schema, load_schema(data), data)
    try:
        dataset = Dataset(data, split, labelled=labelled)
    except UserError:
        if labelled and not (rows := Dataset(data, split, labelled=False)).has(rows.schema.label):
            raise UserError(
                f"{data / split}: no column of numbers {rows.schema.label!r} with the label, which metrics need; "
                "`cetnet predict` scores such rows"
            ) from None
        raise
    check_values(dataset)
    return dataset


def _check_same(run: Schema, data: Schema, path: Path) -> None:
    """The data must mean the same to the model: equal features and tables."""
    inputs = {feature.name: (feature.kind, feature.table, feature.max_length) for feature in run.features}
    others = {feature.name: (feature.kind, feature.table, feature.max_length) for feature in data.features}
    for name in {**inputs, **others}:
        if inputs.get(name) != others.get(name):
            raise UserError(
                f"{path}: feature {name!r} is not as in the run; score data of the run's own schema"
            )
    if list(inputs) != list(others):
        raise UserError(f"{path}: the features are in another order than in the run; use its schema.yaml")
    if run.tables != data.tables:
        table = next(t for t in {**run.tables, **data.tables} if run.tables.get(t) != data.tables.get(t))
        raise UserError(
            f"{path}: table {table!r} has other rows than in the run; use the run's own vocabulary"
        )
    before, now = run.vocabularies or {}, data.vocabularies or {}
    if changed := [table for table in before if now.get(table, before[table]) != before[table]]:
        raise UserError(
            f"{path}: the ids of table {changed[0]!r} stand for other values than in the run, as of data prepared "
            "anew; score data of the run's own preparation, or train again"
        )
    if different := set(run.id_ranges.items()) ^ set(data.id_ranges.items()):
        table = min(different)[0]
        raise UserError(
            f"{path}: table {table!r} is not hashed as in the run; use the run's schema.yaml, and raw ids if it is"
        )
