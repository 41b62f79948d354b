"""The kinds of cases, how often each is drawn, and the case of a seed."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

from cetnet.benchmarks.fuzz.case import Case
from cetnet.benchmarks.fuzz.harm.surroundings import surround
from cetnet.benchmarks.fuzz.scenarios import others, preparing, training

_DATA, _RUN, _STUDY, _SOURCES = ["data"], ["data", "run"], ["data", "study"], ["sources"]
SCENARIOS: dict[str, tuple[int, list[str], Callable[[Case], None]]] = {
    "prepare csv": (28, [], preparing.prepare_csv),
    "prepare csv (schema)": (7, [], preparing.prepare_yaml),
    "prepare parquet": (15, [], preparing.prepare_parquet),
    "prepare SOURCE": (8, _SOURCES, preparing.prepare_source),
    "train (experiment)": (10, _DATA, training.train_config),
    "train (schema)": (6, _DATA, training.train_schema),
    "train (data)": (10, _DATA, training.train_data),
    "train --resume": (6, _RUN, training.resume),
    "evaluate": (4, _RUN, training.evaluate),
    "predict": (5, _RUN, training.predict),
    "study --report-only": (3, _STUDY, others.report),
    "study --smoke": (1, _DATA, others.smoke),
    "plan": (4, _DATA, others.plan),
    "others": (5, [], others.other),
}
"""How often each is drawn, what it needs (see `bases.making`), and what makes it."""

SURROUNDED = 0.35


def kind_of(seed: int) -> str:
    """The row of the table that a seed's case is in."""
    weights = [weight for weight, _, _ in SCENARIOS.values()]
    return random.Random(seed).choices(list(SCENARIOS), weights)[0]


def needs(seeds: Iterable[int]) -> set[str]:
    """What has to be there for the cases of these seeds."""
    return {need for kind in {kind_of(seed) for seed in seeds} for need in SCENARIOS[kind][1]}


def make(seed: int, bases: Path, folder: Path, sandboxed: bool) -> Case:
    """The case of a seed, in a new folder."""
    rng = random.Random(f"case {seed}")
    folder.mkdir(parents=True)
    case = Case(seed, bases, folder, rng, kind_of(seed))
    SCENARIOS[case.kind][2](case)
    if rng.random() < SURROUNDED:
        surround(case, sandboxed)
    return case
