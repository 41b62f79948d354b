"""What a tuning came to: each trial's outcome, and the files that keep it."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cetnet.benchmarks.study.definition import Study
from cetnet.benchmarks.tune.search import Search
from cetnet.benchmarks.tune.trials import Trial, in_any_study
from cetnet.trainer.files import without_nonfinite, write_json, write_text, written_aside

VARIANTS, TRIALS, TUNING = "variants.yaml", "trials.csv", "tune.json"


class Outcome(NamedTuple):
    """What became of a trial.

    Attributes:
        trial: which.
        state: in a word or two.
        ne: at each rung that it came to, progressive but for the last, which is on the tuning's split.
        why: it failed.
    """

    trial: Trial
    state: str
    ne: list[float]
    why: str = ""


def outcomes(search: Search) -> list[Outcome]:
    """Every trial that was drawn."""
    chosen, failures, stopped, found = search.chosen(), search.failures, search.stopped, []
    for trial in search.known:
        ne = []
        # A loser may be further than its rung: it went on until it was told.
        for window in search.windows[: stopped.get(trial.number)]:
            if trial.missing(window):
                break
            ne.append(trial.final_ne(search.tune.split) if window is None else trial.progressive_ne(window))
        if trial.number in failures:
            state = "failed"
        elif trial.number in stopped:
            state = f"stopped at rung {len(ne)}"
        elif len(ne) == len(search.windows):
            state = "chosen" if trial is chosen else "finished"
        else:
            state = "not finished"
        found.append(Outcome(trial, state, ne, failures.get(trial.number, "")))
    return found


def write_variants(study: Study, path: Path, searches: Sequence[Search], out: Path) -> None:
    """The variants with their chosen settings, as a file that a study takes for `variants`."""
    assert study.tune
    chosen = {search.variant: search.chosen() for search in searches}
    rows, seconds = (
        sum(getattr(trial, name) for search in searches for trial in search.known)
        for name in ("rows", "seconds")
    )
    tune = study.tune
    lines = [
        f"Chosen by `cetnet tune` of {path.name} on {datetime.now(UTC):%Y-%m-%d}: {tune.trials} trials of each",
        f"variant ({tune.sampling}), seeds {_listed(tune.seeds)}, by NE on split {tune.split}; {study.split} was not "
        "read.",
        f"Spent: {rows:,} rows, {seconds:,.0f} seconds of training. sha256 of the study file: {_digest(path)}",
    ]
    content = {
        variant: dict(trial.overrides) if (trial := chosen.get(variant)) else in_any_study(study, variant)
        for variant in study.variants
        if variant not in chosen or chosen[variant]  # not tuned, or to the end
    }
    text = "".join(f"# {line}\n" for line in lines)
    content = json.loads(json.dumps(content))  # no mapping occurs twice, which yaml would name &id001
    text += yaml.safe_dump(content, sort_keys=False, width=100)
    write_text(out / VARIANTS, text)


def write_trials(searches: Sequence[Search], found: Mapping[str, Sequence[Outcome]], out: Path) -> None:
    """Every trial of every variant as CSV."""
    rungs = max(len(search.windows) for search in searches)
    keys = list(dict.fromkeys(key for search in searches for key in search.space))
    split = searches[0].tune.split
    header = ["variant", "trial", "state", "rows", "seconds"]
    header += [f"NE at rung {number}" for number in range(1, rungs)] + [f"NE of {split}"]
    with written_aside(out / TRIALS) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *keys, "why it failed"])
        for search in searches:
            for trial, state, ne, why in found[search.variant]:
                cells = [*ne, *[""] * (rungs - len(ne))]
                values = [shown(trial.values[key]) if key in trial.values else "" for key in keys]
                writer.writerow(
                    [
                        trial.variant,
                        trial.number,
                        state,
                        trial.rows,
                        f"{trial.seconds:.1f}",
                        *cells,
                        *values,
                        why,
                    ]
                )


def write_tuning(study: Study, path: Path, searches: Sequence[Search], out: Path) -> None:
    """What was asked for, what it took and what was chosen, as JSON."""
    assert study.tune
    variants: dict[str, Any] = {}
    for search in searches:
        trials, chosen = search.known, search.chosen()
        variants[search.variant] = {
            "trials": len(trials),
            "failed": len(search.failures),
            "rows": sum(trial.rows for trial in trials),
            "seconds": sum(trial.seconds for trial in trials),
            "rungs": [window and list(window) for window in search.windows],
            "chosen": chosen
            and {
                "trial": chosen.number,
                "values": dict(chosen.values),
                "ne": chosen.final_ne(study.tune.split),
            },
        }
    content = {
        "study": study.name,
        "sha256": _digest(path),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tune": study.tune.model_dump(mode="json", exclude_none=True),
        "variants": variants,
    }
    write_json(out / TUNING, without_nonfinite(content))


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def shown(value: Any) -> str:
    """A setting's value as text."""
    return value if isinstance(value, str) else json.dumps(value)


def first_rung(found: Sequence[Outcome]) -> list[float]:
    """NE at the first rung, which is over the same rows for all trials; of those that came to it."""
    return [outcome.ne[0] for outcome in found if outcome.ne and math.isfinite(outcome.ne[0])]
