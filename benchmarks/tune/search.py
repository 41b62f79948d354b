"""The search of a variant: its trials, which are halved at every rung."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from cetnet.benchmarks.study.definition import Run
from cetnet.benchmarks.tune.halving import rungs, survivors
from cetnet.benchmarks.tune.journal import Journal
from cetnet.benchmarks.tune.space import Space, representatives
from cetnet.benchmarks.tune.trials import Trial, Trials
from cetnet.trainer.data.dataset import Dataset

Window = tuple[int, int] | None
"""Rows that a rung compares; None: the last rung, on a split when training has ended."""


class Task(NamedTuple):
    """A run that a rung waits for."""

    run: Run
    trial: Trial
    window: Window

    @property
    def pause_at(self) -> int | None:
        """The step of the rung, until which it trains; None: to its end."""
        return self.window and self.window[1] // self.trial.batch_size

    @property
    def done(self) -> bool:
        """Whether it has come to the rung."""
        return self.trial.reached(self.run, self.window)


class Search:
    """The trials of a variant, halved at every rung. What is done is read from their folders and the journal.

    Args:
        trials: Makes them.
        space: What is tuned.
        folder: Of the journal.

    Raises:
        UserError: the search was begun with other settings, or an epoch is too short for its rungs.
    """

    def __init__(self, trials: Trials, space: Space, folder: Path) -> None:
        self.tune, self.variant, self.space = trials.tune, trials.variant, space
        self._trials = trials
        configs = [trials.config(run) for run in self.representative_runs()]
        data = configs[0].data
        rows = Dataset(data.path, data.split, data.bad_rows).num_rows
        most = [
            config.training.max_steps * config.data.batch_size
            for config in configs
            if config.training.max_steps
        ]
        sizes = [config.data.batch_size for config in configs]
        self.every, windows = rungs(min([rows, *most]), sizes, self.tune.eta, self.tune.rungs)
        self.windows: list[Window] = [*windows, None]
        self._journal = Journal(folder, self.variant, space, self.tune)
        self._made: list[Trial] = []
        self._going_on: dict[tuple[int, int], list[int]] = {}  # by first trial of a bracket and rung

    def representative_runs(self) -> list[Run]:
        """Runs of the variant as it stands, and of every choice and end of a range; not for training."""
        return [
            self._trials.make(self.tune.trials + number, values).runs[0]
            for number, values in enumerate(representatives(self.space))
        ]

    def made(self, count: int) -> list[Trial]:
        """The first trials, drawn as far as they are new."""
        if count > len(self._made):
            values = self._journal.values(count)
            self._made += [
                self._trials.make(number, values[number], self.every)
                for number in range(len(self._made), count)
            ]
        return self._made[:count]

    @property
    def known(self) -> list[Trial]:
        """The trials that were drawn so far."""
        return self.made(self._journal.count)

    @property
    def failures(self) -> dict[int, str]:
        """Why trials failed, by number."""
        return self._journal.failures()

    @property
    def stopped(self) -> dict[int, int]:
        """The trials that didn't go on, by number, and at how many rungs they were judged."""
        ends = {window[1]: rung for rung, window in enumerate(self.windows, 1) if window}
        return {number: ends[rows] for number, rows in self._journal.stops().items()}

    def tasks(self, under_way: Collection[Path], console: Console) -> list[Task]:
        """The runs that the next comparison waits for; none if the search is at its end.

        Args:
            under_way: Folders of runs under way: none is judged before it has ended.
            console: Where it is said who goes on.
        """
        count, failures = self.tune.trials, self.failures
        bracket = self.tune.eta ** (self.tune.rungs - 1) if self.tune.sampling == "tpe" else count
        for first in range(0, count, bracket):
            of_bracket = self.made(min(first + bracket, count))[first:]
            alive = [trial for trial in of_bracket if trial.number not in failures]
            for rung, window in enumerate(self.windows):
                if (first, rung) not in self._going_on:
                    waited_for = [
                        Task(run, trial, window) for trial in alive for run in trial.missing(window)
                    ]
                    if waited_for or any(run.folder in under_way for trial in alive for run in trial.runs):
                        return waited_for
                    going_on = self._compare(alive, window, len(of_bracket), rung, console)
                    self._going_on[first, rung] = going_on
                alive = [trial for trial in alive if trial.number in self._going_on[first, rung]]
        return []

    def fail(self, trial: Trial, why: str) -> None:
        """Leave a trial out whose run ended with an error."""
        self._journal.failed(trial.number, why)
        trial.drop_checkpoints()

    def failed_folders(self) -> list[Path]:
        """Of the runs of trials that failed."""
        failed = self.failures
        return [run.folder for trial in self._made if trial.number in failed for run in trial.runs]

    def _compare(
        self, alive: Sequence[Trial], window: Window, started: int, rung: int, console: Console
    ) -> list[int]:
        """Judge the trials that came to a rung; the numbers of those that go on, the best first."""
        if window is None:
            for trial in alive:
                self._journal.finished(trial.number, trial.rows, trial.final_ne(self.tune.split))
                trial.drop_checkpoints()
            return [trial.number for trial in alive]
        values = {trial.number: trial.progressive_ne(window) for trial in alive}
        going_on = survivors(values, started, self.tune.eta, rung)
        for trial in alive:
            if trial.number not in going_on:
                self._journal.stopped(trial.number, window[1], values[trial.number])
                trial.drop_checkpoints()
        best = ", ".join(f"{number} (NE {values[number]:.5f})" for number in going_on)
        console.print(
            f"{self.variant}: after {window[1]:,} rows {len(going_on)} of {len(alive)} trials go on: {best or 'none'}"
        )
        return going_on

    def chosen(self) -> Trial | None:
        """The finished trial with the lowest NE on the tuning's split, mean of its seeds; None if there is none."""
        out = (
            self.stopped.keys() | self.failures.keys()
        )  # which may have come to the end before they were told
        finished = [trial for trial in self.known if trial.number not in out and not trial.missing(None)]
        ne = {trial.number: trial.final_ne(self.tune.split) for trial in finished}
        defined = [number for number in ne if not math.isnan(ne[number])]
        return self._made[min(defined, key=lambda number: (ne[number], number))] if defined else None
