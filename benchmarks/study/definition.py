"""Study files: variants of one configuration x seeds, and the runs that they ask for."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field, model_validator

from cetnet.benchmarks.study.teachers import (
    teacher_folders,
    teachers_first,
    with_folders,
    with_seeds_of_students,
)
from cetnet.benchmarks.tune.space import Tune, check_tune
from cetnet.models.names import SplitName, VariantName
from cetnet.models.strict import Strict
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import UsablePath, write_json
from cetnet.trainer.yaml_files import checked, read_yaml

PAGE, MARKDOWN, TABLE = REPORT_FILES = ("report.html", "report.md", "table.csv")
"""The report, in the folder of the study."""

PROGRESSIVE_NE = "progressive NE"
"""The metric that `until.monitor: progressive` judges."""


class Numbers(Strict):
    """Published numbers of a variant."""

    gauc: float | None = None
    auc: float | None = None
    logloss: float | None = None
    ne_gain: float | None = Field(None, description="In percent. Default: from `logloss`.")


class Paper(Strict):
    """Published numbers that a report shows beside its own."""

    source: str = Field(description="Where they are published, and what they were measured on.")
    numbers: dict[str, Numbers] = Field(
        description="Of variants; `<variant>/<component>` is a component inside of an ensemble."
    )


class MoreSeeds(Strict):
    """Seeds that only the variants have that conclusions rest on."""

    seeds: tuple[int, ...] = Field(min_length=1)
    variants: tuple[str, ...] = Field(
        min_length=1,
        description="Names, or patterns such as `dnn_*`. Name the baseline too: gains pair seeds.",
    )


class Until(Strict):
    """When a study has seeds enough."""

    half_width: float = Field(
        0.2,
        gt=0,
        description="Widest half of a gain's 95 % interval that decides, in percent of NE; of larger gains a fifth.",
    )
    monitor: Literal["ne", "progressive"] = Field(
        "ne", description="NE of the study's split, or of every training batch before it is learned from."
    )
    max_seeds: int = Field(20, ge=3, le=200, description="Most seeds of a variant, decided or not.")

    def wide_enough(self, gain: float) -> float:
        """The widest half of the interval that decides a gain; both in percent."""
        return max(self.half_width, abs(gain) / 5)


class Study(Strict):
    """A study file: what to train, and what to compare it with."""

    name: VariantName
    title: str | None = Field(None, description="Heading of the report. Default: the name.")
    description: str = Field("", description="Markdown under the heading.")
    base: UsablePath = Field(
        description="Configuration that the variants change, relative to the study file."
    )
    data_schema: UsablePath | None = Field(
        None,
        alias="schema",
        description="Schema of the data, relative to the study file: what `--smoke` draws random rows in.",
    )
    out: UsablePath | None = Field(
        None,
        description="Folder for runs and report, relative to the working directory. Default: runs/<name>.",
    )
    nproc: int = Field(gt=0, le=1024, description="Processes of each run.")
    seeds: tuple[int, ...] = Field(min_length=1, description="Of every variant.")
    more_seeds: MoreSeeds | None = Field(None, description="Further seeds of some variants.")
    until: Until | None = Field(
        None,
        description="Further seeds, in pairs, of variants whose gains are undecided, and of their baselines.",
    )
    tune: Tune | None = Field(
        None,
        description="How `cetnet tune` chooses settings for the variants, which `cetnet study` passes over.",
    )
    split: SplitName = Field("test", description="The split that the table reports.")
    baseline: str | tuple[str, ...] = Field(
        description="The variant that gains are over. Several: each is the baseline of the variants from it to "
        "the next."
    )
    also: dict[str, tuple[str, ...]] = Field(
        {},
        description="Variants, and others than their baseline that their gains are over as well: "
        "`cetnet: [best_single_twice]`.",
    )
    components: bool = Field(True, description="Whether the tables list the components of ensembles.")
    scaling: dict[str, str] = Field(
        {},
        description="Methods of making embeddings larger, and patterns of their variants: `SE: '*_se_*'`. The report "
        "then plots metrics against embedding parameters, a line per method from each baseline on, and compares each "
        "method with the first one at the same size.",
    )
    embeddings: bool = Field(
        False, description="Whether the report analyses the singular values of the embedding tables."
    )
    paper: Paper | None = Field(
        None, description="Published numbers, shown beside ours; or a YAML file with them, as for `variants`."
    )
    common: dict[str, Any] = Field(
        {}, description="Dotted configuration keys, and their values, that all variants change."
    )
    variants: dict[VariantName, dict[str, Any]] = Field(
        min_length=1,
        description="Dotted configuration keys of each variant and their values; or a YAML file with that, "
        "relative to the study file. `training.teacher: variant:NAME` is the run of that variant of the same seed.",
    )

    @model_validator(mode="after")
    def _check(self) -> "Study":
        seeds = [*self.seeds, *(self.more_seeds.seeds if self.more_seeds else ())]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {seeds} has a seed twice")
        if self.until and self.more_seeds:
            raise ValueError("until and more_seeds both say which variants have further seeds; leave one out")
        if self.until and self.until.max_seeds < len(seeds):
            raise ValueError(f"until.max_seeds is {self.until.max_seeds}, but there are {len(seeds)} seeds")
        if self.tune:
            check_tune(self.tune, list(self.variants), [*seeds, *self.further_seeds], self.split)
        patterns = [("scaling", pattern) for pattern in self.scaling.values()]
        if self.more_seeds:
            patterns += [("more_seeds.variants", pattern) for pattern in self.more_seeds.variants]
        for key, pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.variants):
                raise ValueError(f"{key}: {pattern!r} is none of the variants {', '.join(self.variants)}")
        if unknown := [name for name in self._baselines if name not in self.variants]:
            raise ValueError(f"baseline {unknown[0]!r} is not one of the variants {', '.join(self.variants)}")
        named = [name for variant, others in self.also.items() for name in (variant, *others)]
        if unknown := [name for name in named if name not in self.variants]:
            raise ValueError(f"also: {unknown[0]!r} is not one of the variants {', '.join(self.variants)}")
        if itself := [variant for variant, others in self.also.items() if variant in others]:
            raise ValueError(f"also: {itself[0]!r} would be compared with itself")
        if len(self._baselines) > 1 and self._baselines[0] != next(iter(self.variants)):
            raise ValueError("with several baselines, the first variant must be one")
        for name, overrides in {"common": self.common, **self.variants}.items():
            if taken := {"run_dir", "training.seed"} & set(overrides):
                raise ValueError(f"{name!r} sets {min(taken)!r}, which the study sets itself")
        for name in self.paper.numbers if self.paper else ():
            if name.split("/")[0] not in self.variants:
                raise ValueError(
                    f"paper.numbers: {name!r} is not one of the variants {', '.join(self.variants)}"
                )
        return self

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """The seeds that a variant is trained with."""
        more = self.more_seeds
        if more and any(fnmatchcase(variant, pattern) for pattern in more.variants):
            return self.seeds + more.seeds
        return self.seeds

    @property
    def further_seeds(self) -> range:
        """The seeds that `until` may add, in their order."""
        first = max(self.seeds) + 1
        return range(first, first + (self.until.max_seeds - len(self.seeds) if self.until else 0))

    @property
    def monitored(self) -> str:
        """The metric whose gains are judged: `NE` of the split, or `progressive NE`."""
        return PROGRESSIVE_NE if self.until and self.until.monitor == "progressive" else "NE"

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of seeds at which a study with `until` looks at its gains; two seeds tell nothing. Else none."""
        if not self.until:
            return ()
        numbers = range(len(self.seeds), self.until.max_seeds, 2)
        return (*(number for number in numbers if number > 2), self.until.max_seeds)

    def method_of(self, variant: str) -> str | None:
        """Which method of `scaling` a variant belongs to; the first, if several."""
        return next((name for name, pattern in self.scaling.items() if fnmatchcase(variant, pattern)), None)

    @property
    def sections(self) -> dict[str, list[str]]:
        """For each baseline, the variants that are compared with it, itself included."""
        if len(self._baselines) == 1:
            return {self._baselines[0]: list(self.variants)}
        sections: dict[str, list[str]] = {}
        for variant in self.variants:
            if variant in self._baselines:
                sections[variant] = []
            sections[next(reversed(sections))].append(variant)
        return sections

    @property
    def _baselines(self) -> tuple[str, ...]:
        return (self.baseline,) if isinstance(self.baseline, str) else self.baseline

    @property
    def folder(self) -> Path:
        """Where runs and report go."""
        return self.out or Path("runs") / self.name

    @classmethod
    def load(cls, path: Path) -> "Study":
        """Read a study file; raises UserError naming the file, the key and what is wrong with it."""
        content, source = read_yaml(path), str(path)
        for key in ("variants", "paper"):
            if isinstance(content.get(key), str):
                source += f", {key} in {path.parent / content[key]}"
                content[key] = _read(path, key, path.parent / content[key])
        return checked(content, cls, source)


def _read(study: Path, key: str, named: Path) -> dict[str, Any]:
    """The YAML file that a study names under a key."""
    try:
        return read_yaml(named)
    except UserError as error:
        raise UserError(f"{study}: {key}: {error}") from error


class Run(NamedTuple):
    """One run of a study: its folder, its configuration, and what of it must not change once it started."""

    variant: str
    seed: int
    folder: Path
    base: Path
    overrides: list[str]
    nproc: int
    settings: dict[str, Any]

    @property
    def arguments(self) -> list[str]:
        """Of `cetnet train`."""
        base = str(self.base)
        base = f"./{base}" if base.startswith("-") else base  # not an option
        return [base, *self.overrides, "--nproc", str(self.nproc)]

    @property
    def checkpoints(self) -> str | None:
        """Its `checkpoint.path`."""
        return self.settings.get("overrides", {}).get("checkpoint.path")

    @property
    def needs(self) -> list[Path]:
        """The folders of the study's runs that must be finished before this one starts: its teachers."""
        return teacher_folders(self.settings.get("overrides", {}), self.folder)

    @property
    def ready(self) -> bool:
        """Whether all that it needs is finished."""
        return all((folder / "result.json").exists() for folder in self.needs)

    @property
    def settings_file(self) -> Path:
        """Beside the run folder."""
        return settings_file(self.folder)

    def write_settings(self) -> None:
        """Record what the run is made with; to be called before it starts."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.settings_file, self.settings, indent=2)

    @property
    def finished(self) -> bool:
        """Whether the trainer has written its last file."""
        return (self.folder / "result.json").exists()


def runs_of(study: Study, path: Path, seeds: Mapping[str, int] | None = None) -> list[Run]:
    """Every run of the study, all variants of a seed before the next seed.

    Args:
        study: What is in the file.
        path: The study file.
        seeds: With `until`, how many seeds variants are to have; beside the first ones, all that were begun count.
    """
    base = Path(os.path.normpath(path.parent / study.base))
    base_settings = _read(path, "base", base)
    runs = []
    # Seed by seed: a study stopped half way has compared every variant at least once.
    more = study.more_seeds.seeds if study.more_seeds else study.further_seeds
    wanted = with_seeds_of_students(
        {variant: _seeds_of(study, variant, (seeds or {}).get(variant, 0)) for variant in study.variants},
        {variant: {**study.common, **overrides} for variant, overrides in study.variants.items()},
    )
    for seed in [*study.seeds, *more]:
        for variant, overrides in study.variants.items():
            if seed not in wanted[variant]:
                continue
            folder = _run_folder(study, variant, seed)
            changes = {**study.common, **overrides, "training.seed": seed}
            place = _checkpoint_path(base, base_settings, changes)
            if place is not None or "checkpoint.path" in changes:
                # To come last: a change of the whole section would undo it.
                changes.pop("checkpoint.path", None)
                changes["checkpoint.path"] = place and f"{place}/{variant}/seed{seed}"
            flags = [
                f"{key}={_flow_yaml(value)}"
                for key, value in {**with_folders(changes, folder), "run_dir": str(folder)}.items()
            ]
            # As it will be read back from JSON; nproc and run_dir may change, they don't change the numbers.
            settings = json.loads(json.dumps({"base": base_settings, "overrides": changes}, default=str))
            runs.append(Run(variant, seed, folder, base, flags, study.nproc, settings))
    return teachers_first(runs)


def _seeds_of(study: Study, variant: str, count: int) -> tuple[int, ...]:
    """The seeds of a variant: its own, and of the further ones so many that there are `count`, and all begun."""
    further = study.further_seeds
    begun = [
        number
        for number, seed in enumerate(further, 1)
        if settings_file(_run_folder(study, variant, seed)).exists()
    ]
    number = max(count - len(study.seeds), *begun, 0)
    return study.seeds_of(variant) + tuple(further[:number])


def _run_folder(study: Study, variant: str, seed: int) -> Path:
    return study.folder / variant / f"seed{seed}"


def settings_file(folder: Path) -> Path:
    """What a run was begun with: beside its folder, which belongs to the trainer."""
    return folder.with_name(f"{folder.name}.settings.json")


def _checkpoint_path(base: Path, base_settings: Any, changes: dict[str, Any]) -> str | None:
    """`checkpoint.path` of a configuration with its changes; raises UserError if there can be none."""
    if not isinstance(base_settings, dict):
        raise UserError(f"{base}: a mapping of keys to values is expected at the top")
    section = base_settings.get("checkpoint")
    for key, value in changes.items():
        if key == "checkpoint":
            section = value
        elif key == "checkpoint.path" and (section is None or isinstance(section, dict)):
            section = {**(section or {}), "path": value}
    if not (section is None or isinstance(section, dict)):
        raise UserError(f"{base}: checkpoint: a mapping is expected, here or in what the study changes")
    place = (section or {}).get("path")
    if not (place is None or isinstance(place, str)):
        raise UserError(f"{base}: checkpoint.path: text is expected, here or in what the study changes")
    return place


def refuse_changed(runs: Sequence[Run], path: Path) -> None:
    """Raise UserError for a run folder that was not made with the settings the study has now."""
    for run in runs:
        if not run.folder.exists():
            continue
        if not run.settings_file.exists():
            raise UserError(
                f"{run.folder}: not made by this study; move it away, or give {path} another `out`"
            )
        if json.loads(run.settings_file.read_text(encoding="utf-8")) != run.settings:
            made = f"the folder and its checkpoints in {run.checkpoints}" if run.checkpoints else "the folder"
            raise UserError(
                f"{run.folder}: made with other settings than {path} and its base have now (they are in "
                f"{run.settings_file}); restore them, delete {made} to repeat the run, or change `out`"
            )


def _flow_yaml(value: Any) -> str:
    """The value on one line of YAML. (JSON would not do: YAML reads JSON's 1e-05 as a string.)"""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=sys.maxsize)
    return text.strip().removesuffix("...").strip()
