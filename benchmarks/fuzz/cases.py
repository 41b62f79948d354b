"""The kinds of cases, how often each is drawn, and the case of a seed."""

import random
from collections.abc import Callable
from pathlib import Path

from cetnet.benchmarks.fuzz.case import Case
from cetnet.benchmarks.fuzz.harm.surroundings import surround
from cetnet.benchmarks.fuzz.scenarios import others, preparing, training

SCENARIOS: dict[str, tuple[int, Callable[[Case], None]]] = {
    "prepare csv": (28, preparing.prepare_csv),
    "prepare csv (schema)": (7, preparing.prepare_yaml),
    "prepare parquet": (15, preparing.prepare_parquet),
    "prepare SOURCE": (8, preparing.prepare_source),
    "train (experiment)": (10, training.train_config),
    "train (schema)": (6, training.train_schema),
    "train (data)": (10, training.train_data),
    "train --resume": (6, training.resume),
    "evaluate": (4, training.evaluate),
    "predict": (5, training.predict),
    "study --report-only": (3, others.report),
    "study --smoke": (1, others.smoke),
    "plan": (4, others.plan),
    "others": (5, others.other),
}


def make(seed: int, bases: Path, folder: Path, sandboxed: bool) -> Case:
    """The case of a seed, in a new folder."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    case = Case(seed, bases, folder, rng)
    names = list(SCENARIOS)
    case.kind = rng.choices(names, [weight for weight, _ in SCENARIOS.values()])[0]
    SCENARIOS[case.kind][1](case)
    if rng.random() < 0.35:
        surround(case, sandboxed)
    return case
