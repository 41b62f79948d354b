"""The `tune` section of a study file: which settings are tried, how many times, and what a variant makes of them."""

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, model_validator

from cetnet.models.component_config import ComponentConfig
from cetnet.models.names import SplitName
from cetnet.models.strict import Strict

OWN = (
    "run_dir",
    "training.seed",
    "evaluation.splits",
    "checkpoint.path",
    "checkpoint.keep",
    "training.log_every",
)
"""Keys that a trial sets itself."""

Values = Mapping[str, Any]
"""Keys of the space -> values of a trial; empty for the variant as it stands."""


class Setting(Strict):
    """What a key may be: one of some values, or a number from low to high, both included."""

    choices: tuple[Any, ...] | None = Field(None, description="Values, of any form that the key may have.")
    low: int | float | None = None
    high: int | float | None = Field(None, description="Whole numbers are drawn if both are whole.")
    log: bool = Field(False, description="Draw the logarithm evenly, as of learning rates.")

    @model_validator(mode="after")
    def _check(self) -> "Setting":
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices, or low and high, but not both")
            if not self.choices:
                raise ValueError("choices is empty")
        elif self.low is None or self.high is None:
            raise ValueError("choices, or low and high, are expected")
        elif not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        elif self.log and self.low <= 0:
            raise ValueError(f"log: low {self.low} is not above 0")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """All choices; of a range its ends, between which the others lie."""
        return self.choices if self.choices is not None else (self.low, self.high)


Space = Mapping[str, Setting]
"""Dotted keys of a configuration -> what they may be. A part may be a pattern: `model.components.*.embedding_std`."""


class Tune(Strict):
    """How `cetnet tune` chooses settings for the variants: the same number of trials, rows and seeds for each."""

    trials: int = Field(
        9, gt=0, le=10_000, description="Of each variant; the first is the variant as it stands."
    )
    sampler: Literal["random", "tpe", "grid"] | None = Field(
        None,
        description="How trials are drawn. Default: `random` below 20 trials, `tpe` (Optuna) from there on. `grid` "
        "has every point of the choices; `trials` must be their number.",
    )
    eta: int = Field(3, ge=2, le=100, description="One of so many trials goes on at each rung.")
    rungs: int = Field(
        3,
        gt=0,
        le=10,
        description="How often trials are compared: after 1/eta^(rungs-1) of an epoch, ..., 1/eta of it, and when "
        "they are finished. 1 trains all of them to their end.",
    )
    seeds: tuple[int, ...] = Field(
        (1001,),
        min_length=1,
        description="Of each trial; NE is the mean over them. None may be a seed of the study.",
    )
    split: SplitName = Field(
        "validation", description="Split that the last rung is decided on; not the study's own."
    )
    shared: dict[str, Setting] = Field({}, description="Keys that are tuned in every variant.")
    variants: dict[str, dict[str, Setting]] = Field(
        {}, description="Further keys of some variants, by name or pattern; inside the same number of trials."
    )

    @model_validator(mode="after")
    def _check(self) -> "Tune":
        if not self.shared and not any(self.variants.values()):
            raise ValueError("there is nothing to tune: name keys under `shared` or `variants`")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} has a seed twice")
        for pattern, settings in {"shared": self.shared, **self.variants}.items():
            for key in settings:
                if key in OWN:
                    raise ValueError(f"{pattern}: {key!r} is set by `cetnet tune` itself")
                if pattern != "shared" and key in self.shared:
                    raise ValueError(
                        f"variants.{pattern}: {key!r} is shared already, with the same values for all"
                    )
        return self

    def space_of(self, variant: str) -> dict[str, Setting]:
        """The keys that are tuned in a variant: those of all, then its own."""
        own = [settings for pattern, settings in self.variants.items() if fnmatchcase(variant, pattern)]
        return dict(self.shared) | {key: setting for settings in own for key, setting in settings.items()}

    @property
    def sampling(self) -> str:
        """The sampler, by default that for the number of trials."""
        return self.sampler or ("random" if self.trials < 20 else "tpe")


def check_tune(tune: Tune, variants: Sequence[str], seeds: Sequence[int], split: str) -> None:
    """Raise ValueError for what contradicts the study: a seed or split of its results, a variant that it lacks."""
    if taken := sorted(set(tune.seeds) & set(seeds)):
        raise ValueError(
            f"tune.seeds: {taken[0]} is a seed of the study, whose results must not know the tuning's"
        )
    if tune.split == split:
        raise ValueError(f"tune.split: {split!r} is what the study reports; choose on another split")
    for pattern in tune.variants:
        if not any(fnmatchcase(name, pattern) for name in variants):
            raise ValueError(f"tune.variants: {pattern!r} is none of the variants {', '.join(variants)}")
    for variant in variants:
        space = tune.space_of(variant)
        if tune.sampling == "grid":
            points = 1
            for key, setting in space.items():
                if setting.choices is None:
                    raise ValueError(f"tune: grid needs choices, and {key!r} has a range; name some")
                points *= len(setting.choices)
            if points != tune.trials:
                raise ValueError(
                    f"tune: the grid of {variant!r} has {points} points, but there are {tune.trials} trials for each "
                    "variant; make them the same"
                )


def representatives(space: Space) -> list[Values]:
    """Values of which each choice, and each end of a range, is in one at least; the variant as it stands first."""
    count = max((len(setting.ends) for setting in space.values()), default=0)
    return [
        {},
        *(
            {key: setting.ends[number % len(setting.ends)] for key, setting in space.items()}
            for number in range(count)
        ),
    ]


def expanded(
    settings: Mapping[str, Any], values: Values, fields: Mapping[str, frozenset[str]]
) -> dict[str, Any]:
    """Overrides of a configuration that give it the values, each pattern written out, in the order that they apply.

    Args:
        settings: The configuration without them.
        values: Of a trial.
        fields: For kinds of components, the keys that they have; a pattern passes over a component that lacks one.
    """
    applied: dict[str, Any] = copy.deepcopy(dict(settings))
    changes: dict[str, Any] = {}
    # Whole sections before what is inside of them.
    for key in sorted(values, key=lambda key: key.count(".")):
        for path in _paths(applied, key.split("."), fields):
            changes[".".join(path)] = values[key]
            _set(applied, path, values[key])
    return changes


def _set(settings: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *parents, last = path
    at: Any = settings
    for part in parents:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            return  # what reads the overrides says so
    at[last] = value


def _paths(
    settings: Mapping[str, Any], parts: Sequence[str], fields: Mapping[str, frozenset[str]]
) -> list[list[str]]:
    """The keys that a pattern stands for."""
    paths: list[list[str]] = [[]]
    for part in parts:
        longer = []
        for path in paths:
            if not is_pattern(part):
                longer.append([*path, part])
                continue
            at: Any = settings
            for name in path:
                at = at.get(name, {}) if isinstance(at, dict) else {}
            longer += (
                [[*path, name] for name in at if fnmatchcase(name, part)] if isinstance(at, dict) else []
            )
        paths = longer
    return [path for path in paths if not is_pattern(".".join(parts)) or _has(settings, path, fields)]


def _has(settings: Mapping[str, Any], path: Sequence[str], fields: Mapping[str, frozenset[str]]) -> bool:
    """Whether a component has a key; of other sections it isn't asked."""
    if len(path) < 4 or path[:2] != ["model", "components"]:
        return True
    component = settings["model"]["components"][path[2]]
    return path[3] in fields.get(component.get("kind"), {path[3]})


def asks_components(tune: Tune) -> bool:
    """Whether a pattern names a key that not every component has."""
    keys = [key.split(".") for settings in (tune.shared, *tune.variants.values()) for key in settings]
    return any(
        len(parts) > 3 and is_pattern(parts[2]) and parts[3] not in ComponentConfig.model_fields
        for parts in keys
    )


def is_pattern(key: str) -> bool:
    """Whether a key, or a part of one, stands for several."""
    return any(sign in key for sign in "*?[")
