"""What can be wrong with a training run and shows without torch, which takes seconds to load."""

from pathlib import Path

from cetnet.models.rules import indivisible
from cetnet.models.schema import Schema
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import Dataset
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
    dataset = Dataset(config.data.path, config.data.split, config.data.bad_rows)
    splits = set(config.evaluation.splits)
    if config.evaluation.every_steps or config.evaluation.every_epoch:
        splits.add(config.evaluation.validation)
    for split in sorted(splits):
        Dataset(config.data.path, split)
    return dataset


def check_scored(run: Path, data: Path, split: str) -> Dataset:
    """The split that a run is to score; raises UserError if this is no run, or the data isn't as the run's."""
    _, schema = load_run(run, resolve=False)
    dataset = Dataset(data, split)
    _check_same(schema, dataset.schema, data)
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
