"""A trained model, asked about a sample of rows: as they are, and with the values of each feature permuted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cetnet.trainer.console import console
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.dataset_files import VOCABULARIES
from cetnet.trainer.errors import UserError
from cetnet.trainer.evaluate import Trained, trained_session
from cetnet.trainer.explain.decided import Slice, weights_of, who_decided, why_no_weights
from cetnet.trainer.explain.importance import Evaluated, Lost, lost
from cetnet.trainer.explain.sample import Sample, permuted_together
from cetnet.trainer.metrics import group_numbers
from cetnet.trainer.scoring import score

Floats = NDArray[np.float64]


class Question(NamedTuple):
    """What is asked.

    Attributes:
        rows: of the sample, at most.
        features: names, or several joined by +; all, if there are none.
        repeats: permutations of each.
        by: features whose values tell slices of the rows.
        seed: of the sample, the permutations, the resampling.
    """

    rows: int
    features: list[str]
    repeats: int
    by: list[str]
    seed: int


@dataclass(frozen=True)
class Explanation:
    """The answer.

    Attributes:
        checkpoint: name of the checkpoint that was asked.
        rows: of the sample.
        units: groups, or rows, that were resampled.
        ne: of each output on the sample.
        lost: by the features permuted, joined by +; that which costs the fused output most comes first.
        slices: which component decided.
        why_no_weights: why there are none.
    """

    checkpoint: str
    rows: int
    units: int
    ne: dict[str, float]
    lost: dict[str, dict[str, Lost]]
    slices: list[Slice]
    why_no_weights: str | None


def explain(run: Path, dataset: Dataset, question: Question) -> Explanation | None:
    """Ask the newest checkpoint of a run; every rank calls it, rank 0 gets the answer.

    Memory: twice the sample, decoded, on every rank. Raises UserError for rows without an NE.
    """
    sample = Sample(dataset, question.rows, question.seed)
    rows = _evaluated(sample)
    if why := rows.undefined():
        raise UserError(f"{dataset.place}: {sample.num_rows:,} rows have no NE: {why}")
    groups = permuted_together(sample.schema, question.features)
    with trained_session(run, sample.schema) as trained:
        config, checkpoint, processes = trained.config, trained.checkpoint, trained.processes
        with _scorer(trained, 1 + len(groups) * question.repeats) as probabilities:
            base = probabilities("as they are", sample)
            permuted = []
            for names in groups:
                losses: dict[str, Floats] = {}
                for repeat in range(question.repeats):
                    shuffled = probabilities("+".join(names), sample.permuted(names, question.seed + repeat))
                    for output, probability in shuffled.items():
                        loss = rows.loss(probability) / question.repeats
                        losses[output] = losses.get(output, 0) + loss
                permuted.append(losses)
        if not processes.is_main:
            return None
    if any(np.isnan(each).any() for each in base.values()):
        raise UserError(f"{run}: predictions are NaN, as of a model that diverged; train it again")
    found = lost({output: rows.loss(each) for output, each in base.items()}, permuted, question.seed)
    by_name = {"+".join(names): losses for names, losses in zip(groups, found, strict=True)}
    first = next(iter(base))
    why_not = why_no_weights(config.model)
    slices = []
    if not why_not:
        weights = weights_of(base, config.model)
        slices = who_decided(sample, rows, base, weights, question.by, run / VOCABULARIES)
    return Explanation(
        checkpoint.name,
        sample.num_rows,
        int(rows.unit.max()) + 1,
        {output: rows.ne(each) for output, each in base.items()},
        dict(sorted(by_name.items(), key=lambda each: -each[1][first].percent)),
        slices,
        why_not,
    )


def _evaluated(sample: Sample) -> Evaluated:
    label, weight = sample.content.numbers[:2].astype(np.float64)
    unit = np.arange(sample.num_rows)
    if sample.schema.group:
        group = sample.column(sample.schema.group).dictionary_encode().indices
        missing = group.is_null().to_numpy(zero_copy_only=False)
        unit = group_numbers(group.fill_null(0).to_numpy(), missing)
    return Evaluated(label, weight, unit)


@contextmanager
def _scorer(trained: Trained, times: int) -> Iterator[Callable[[str, Sample], dict[str, Floats]]]:
    """What scores a sample, of which it says what it is; on other ranks than 0 it gives nothing.

    Shows how far it is, of so many times.
    """
    _, _, session, processes = trained
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal and processes.is_main),
    ) as bar:
        task = bar.add_task("scoring", total=None)

        def probabilities(what: str, sample: Sample) -> dict[str, Floats]:
            bar.update(task, description=what, total=times * -(-sample.num_rows // trained.batch_size))
            scores = score(session, sample, trained.batch_size, processes, lambda _: bar.advance(task))
            return scores.probability if scores else {}

        yield probabilities
