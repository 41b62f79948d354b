"""A trial: the runs that it is made of, and what their folders say of it."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any

from cetnet.benchmarks.study.definition import Run, Study, runs_of
from cetnet.benchmarks.study.report.run_files import read_split
from cetnet.benchmarks.study.teachers import is_student
from cetnet.benchmarks.tune.halving import window_ne
from cetnet.benchmarks.tune.space import Setting, Values, expanded, representatives
from cetnet.trainer.config import RunConfig, parse_config, read_settings
from cetnet.trainer.errors import UserError

TUNE = "tune"
"""Folder in that of the study."""

_START: dict[str, Any] = {"weight": 0.0, "positive": 0.0, "loss": {"fused": 0.0}}


@dataclass(frozen=True)
class Trial:
    """Values for a variant, and a run for each tuning seed.

    Attributes:
        variant: of the study.
        number: from 0, which is the variant as it stands.
        values: by the keys of the space, patterns as they are.
        changes: the overrides that they are, patterns written out.
        overrides: all of the variant's, as `in_any_study` has them, these included.
        runs: one for each seed.
        batch_size: of all of them.
    """

    variant: str
    number: int
    values: Values
    changes: Mapping[str, Any]
    overrides: Mapping[str, Any]
    runs: Sequence[Run]
    batch_size: int

    @property
    def label(self) -> str:
        """How it is called."""
        return f"{self.variant}, trial {self.number}"

    def missing(self, window: tuple[int, int] | None) -> list[Run]:
        """The runs that haven't come to the end of a window of rows or, if it is None, of training."""
        return [run for run in self.runs if not self.reached(run, window)]

    def reached(self, run: Run, window: tuple[int, int] | None) -> bool:
        """Whether a run has come to the end of a window or, if it is None, of training."""
        return run.finished if window is None else window[1] in self._records(run)

    def progressive_ne(self, window: tuple[int, int]) -> float:
        """NE of the fused output over a window of rows, each scored before it is learned from; mean of seeds."""
        return fmean(window_ne(*self._sums(run, window)) for run in self.runs)

    def final_ne(self, split: str) -> float:
        """NE of the fused output on a split when training has ended, mean of seeds; NaN if undefined."""
        found = [read_split(run.folder, split)["splits"][split].get("ne/fused") for run in self.runs]
        return fmean(math.nan if value is None else value for value in found)

    @property
    def rows(self) -> int:
        """Rows that its runs were trained on so far."""
        return sum(max(self._records(run), default=0) for run in self.runs)

    @property
    def seconds(self) -> float:
        """Seconds that its runs have trained so far."""
        return sum(found[max(found)]["seconds"] for run in self.runs if (found := self._records(run)))

    def drop_checkpoints(self) -> None:
        """Make room: the trial is not gone on with."""
        for run in self.runs:
            shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)

    def _records(self, run: Run) -> dict[int, dict[str, Any]]:
        """The training records of a run, by rows trained on, in whole steps; of a step done twice, the last."""
        found = {}
        try:
            with (run.folder / "metrics.jsonl").open(encoding="utf-8") as file:
                for line in file:
                    if not line.endswith("\n"):  # being written
                        break
                    record = json.loads(line)
                    if record["kind"] == "train":
                        found[record["step"] * self.batch_size] = record
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{run.folder / 'metrics.jsonl'}: cannot be read ({error}); delete {run.folder}"
            ) from None
        return found

    def _sums(self, run: Run, window: tuple[int, int]) -> list[dict[str, float]]:
        """The cumulative sums at both ends of a window."""
        found = self._records(run)
        ends: list[dict[str, Any]] = [found[rows]["progressive"] if rows else _START for rows in window]
        return [{**sums, "loss": sums["loss"]["fused"]} for sums in ends]


class Trials:
    """Makes the trials of a variant.

    Args:
        study: With a `tune` section.
        path: Of the study file.
        variant: Of the study.
        fields: Of kinds of components, as `expanded` has it.
    """

    def __init__(
        self, study: Study, path: Path, variant: str, fields: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        assert study.tune
        self.study, self.tune, self.variant = study, study.tune, variant
        self._path, self._fields = path, fields or {}
        own = {"evaluation.splits": [self.tune.split], "checkpoint.path": None, "checkpoint.keep": 1}
        self._overrides = _with(study.common | study.variants[variant], own)
        plain = self._runs(0, self._overrides)[0]
        self._plain = read_settings(plain.base, plain.overrides)

    def make(self, number: int, values: Values, every: int | None = None) -> Trial:
        """A trial with values of the space, whose runs write a record `every` so many rows."""
        changes = expanded(self._plain, values, self._fields)
        overrides = _with(self._overrides, changes)
        batch_size = self.config(self._runs(number, overrides)[0]).data.batch_size
        if every:
            overrides = _with(overrides, {"training.log_every": every // batch_size})
        return Trial(
            self.variant,
            number,
            values,
            changes,
            _with(in_any_study(self.study, self.variant), changes),
            self._runs(number, overrides),
            batch_size,
        )

    def config(self, run: Run) -> RunConfig:
        """What a run would train, its components unresolved; UserError if it is wrong, or reads the study's split.

        Nor may it be a student if a rung compares progressive NE.
        """
        where = f"{self._path}, tune, variant {self.variant!r}"
        settings = read_settings(run.base, run.overrides)
        if self.tune.rungs > 1 and is_student(settings):
            raise UserError(
                f"{where}: a student can't be judged by progressive NE, as its teachers have seen the rows to come; "
                "make tune.rungs 1, which decides on validation, or leave it out"
            )
        config = parse_config(settings, where, resolve=False)
        evaluation = config.evaluation
        reads = {evaluation.validation} if evaluation.every_epoch or evaluation.every_steps else set()
        if self.study.split in {*reads, *evaluation.splits, config.data.split}:
            raise UserError(
                f"{where}: a trial would read split {self.study.split!r}, which the study reports; choose another "
                "data.split and evaluation.validation"
            )
        return config

    def space(self) -> dict[str, Setting]:
        """The keys that are tuned in the variant: without shared patterns that fit none of its components.

        Raises UserError if a key of its own does.
        """
        space = self.tune.space_of(self.variant)
        changed = {
            path for values in representatives(space) for path in expanded(self._plain, values, self._fields)
        }
        void = [key for key in space if not any(fnmatchcase(path, key) for path in changed)]
        for key in void:
            if key not in self.tune.shared:
                raise UserError(f"{self._path}: tune.variants: {key!r} fits no component of {self.variant!r}")
        return {key: setting for key, setting in space.items() if key not in void}

    def _runs(self, number: int, overrides: Mapping[str, Any]) -> list[Run]:
        alone = {
            "out": self.study.folder / TUNE / self.variant,
            "seeds": self.tune.seeds,
            "more_seeds": None,
            "until": None,
            "common": {},
            "variants": {f"trial{number:03d}": dict(overrides)},
        }
        runs = runs_of(self.study.model_copy(update=alone), self._path)
        return [run._replace(variant=f"{self.variant}, trial {number}") for run in runs]


def in_any_study(study: Study, variant: str) -> dict[str, Any]:
    """The overrides of a variant, and those of `common` without which another study would train another model."""
    common = {
        key: value for key, value in study.common.items() if key.split(".")[0] in ("model", "optimizer")
    }
    return common | study.variants[variant]


def _with(overrides: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides and, after them, the changes: a later one of a whole section would undo them."""
    return {key: value for key, value in overrides.items() if key not in changes} | dict(changes)
