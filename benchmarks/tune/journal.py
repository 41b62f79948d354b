"""The trials of each variant in Optuna's journal: drawn once, and told what became of them."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from cetnet.benchmarks.tune.space import Setting, Space, Tune, Values
from cetnet.trainer.errors import UserError

JOURNAL = "journal.log"

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Journal:
    """The trials of a variant.

    Which ones there are, and with which values, is a function of the study file, the variant and what the trials
    before came to: begun again, whenever it was ended, a search goes on as it would have.

    Args:
        folder: Where `journal.log` is, or will be; several variants share it.
        variant: Of the study.
        space: What is tuned in it.
        tune: How; refused if it is not as it was when the search began.

    Raises:
        UserError: the search was begun with other settings.
    """

    def __init__(self, folder: Path, variant: str, space: Space, tune: Tune) -> None:
        self._space, self._tune = space, tune
        self._distributions = {key: _distribution(setting) for key, setting in space.items()}
        file = str(folder / JOURNAL)
        # A lock that works on NFS, too.
        storage = JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file)))
        self._study = optuna.create_study(storage=storage, study_name=variant, load_if_exists=True)
        settings = _settings(tune, space)
        if self._study.user_attrs.get("settings", settings) != settings:
            raise UserError(
                f"{folder}: begun with other settings of `tune` than the study file has now for {variant!r}; restore "
                "them, delete the folder to tune anew, or change `out`"
            )
        self._study.set_user_attr("settings", settings)

    def values(self, count: int) -> list[Values]:
        """The values of the first `count` trials; those that are new are drawn, knowing how the others did."""
        trials = self._trials()
        for number in range(len(trials), count):
            values = self._draw(number)
            distributions = {key: self._distributions[key] for key in values}
            params = {key: _category(self._space[key], value) for key, value in values.items()}
            self._study.add_trial(
                create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
            )
        return [self._values(trial) for trial in self._trials()[:count]]

    @property
    def count(self) -> int:
        """How many trials were drawn so far."""
        return len(self._trials())

    def failures(self) -> dict[int, str]:
        """Why trials failed, by number."""
        return {
            trial.number: trial.user_attrs.get("why", "")
            for trial in self._trials()
            if trial.state == TrialState.FAIL
        }

    def stops(self) -> dict[int, int]:
        """After how many rows trials were stopped, by number."""
        return {
            trial.number: max(trial.intermediate_values)
            for trial in self._trials()
            if trial.state == TrialState.PRUNED
        }

    def stopped(self, number: int, rows: int, ne: float) -> None:
        """A trial ends at a rung, where it had this NE after so many rows."""
        self._end(number, TrialState.PRUNED, rows, ne)

    def finished(self, number: int, rows: int, ne: float) -> None:
        """A trial has come to its end."""
        self._end(number, TrialState.COMPLETE, rows, ne)

    def failed(self, number: int, why: str) -> None:
        """A trial's run ended with an error."""
        optuna.trial.Trial(self._study, self._trials()[number]._trial_id).set_user_attr("why", why)
        self._study.tell(number, state=TrialState.FAIL)

    def _end(self, number: int, state: TrialState, rows: int, ne: float) -> None:
        trial = self._trials()[number]
        if trial.state != TrialState.RUNNING:
            return
        if ne != ne:  # Optuna takes no NaN
            self.failed(number, "NE is undefined")
            return
        optuna.trial.Trial(self._study, trial._trial_id).report(ne, rows)
        self._study.tell(number, None if state == TrialState.PRUNED else ne, state)

    def _draw(self, number: int) -> Values:
        if self._tune.sampling == "grid":
            points = itertools.product(*(setting.choices or () for setting in self._space.values()))
            return dict(zip(self._space, next(itertools.islice(points, number, None)), strict=True))
        if number == 0:
            return {}
        if self._tune.sampling == "tpe":
            drawn = self._ask(TPESampler(seed=crc32(f"trial {number}".encode())), self._distributions)
        else:  # of the number and the key alone: variants have the same values of the keys that they share
            drawn = {
                key: self._ask(RandomSampler(crc32(f"trial {number}, {key}".encode())), {key: distribution})[
                    key
                ]
                for key, distribution in self._distributions.items()
            }
        return {key: _short(setting, _value(setting, drawn[key])) for key, setting in self._space.items()}

    def _ask(self, sampler: BaseSampler, distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Values from a sampler that knows the trials so far: drawn apart, so that the journal has them whole."""
        aside = optuna.create_study(sampler=sampler)
        aside.add_trials(self._trials())
        return aside.ask(distributions).params

    def _trials(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _values(self, trial: FrozenTrial) -> Values:
        return {
            key: _value(self._space[key], trial.params[key]) for key in self._space if key in trial.params
        }


def importances(space: Space, values: Sequence[Values], ne: Sequence[float]) -> dict[str, float]:
    """How much of the best trials' difference from the others each key makes, in shares that add up to 1.

    Watanabe et al. 2023 (arXiv 2304.10255), PED-ANOVA. Empty for fewer than 5 trials with values.
    """
    drawn = [(point, result) for point, result in zip(values, ne, strict=True) if point]
    if len(drawn) < 5 or len(space) < 2:
        return {}
    distributions = {key: _distribution(setting) for key, setting in space.items()}
    study = optuna.create_study()
    for point, result in drawn:
        params = {key: _category(space[key], value) for key, value in point.items()}
        study.add_trial(create_trial(params=params, distributions=distributions, value=result))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _distribution(setting: Setting) -> BaseDistribution:
    if setting.choices is not None:
        return CategoricalDistribution([_category(setting, value) for value in setting.choices])
    low, high = setting.low, setting.high
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=setting.log)
    assert low is not None
    assert high is not None
    return FloatDistribution(low, high, log=setting.log)


def _category(setting: Setting, value: Any) -> Any:
    """A value as Optuna has it, which takes no lists and mappings for categories."""
    return value if setting.choices is None else json.dumps(value)


def _value(setting: Setting, drawn: Any) -> Any:
    return drawn if setting.choices is None else json.loads(drawn)


def _short(setting: Setting, value: Any) -> Any:
    """A number of a range with the three digits that one can read; its neighbours train the same."""
    if setting.low is None or setting.high is None or not isinstance(value, float):
        return value
    return min(max(float(f"{value:.3g}"), float(setting.low)), float(setting.high))


def _settings(tune: Tune, space: Space) -> Mapping[str, Any]:
    how = tune.model_dump(mode="json", exclude={"shared", "variants"})
    keys = {key: setting.model_dump(mode="json", exclude_defaults=True) for key, setting in space.items()}
    return json.loads(json.dumps({**how, "sampler": tune.sampling, "space": keys}))
