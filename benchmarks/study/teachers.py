"""Teachers of the same study: `training.teacher: variant:NAME` is the run of that variant of the same seed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cetnet.trainer.errors import UserError

_KEYS = ("training.teacher", "training.teacher.runs")
_VARIANT = "variant:"


class _Run(Protocol):
    """A run of a study, see `definition.Run`."""

    @property
    def variant(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def folder(self) -> Path: ...
    @property
    def needs(self) -> list[Path]: ...


R = TypeVar("R", bound=_Run)


def is_student(settings: Mapping[str, Any]) -> bool:
    """Whether a run of a configuration learns from teachers.

    Through them it has seen the rows to come: what it says of rows before it learns from them measures no model.
    """
    training = settings.get("training")
    return isinstance(training, dict) and bool(training.get("teacher"))


def teacher_variants(overrides: dict[str, Any]) -> list[str]:
    """The variants that teach the one with these overrides."""
    return [
        each.removeprefix(_VARIANT)
        for key in _KEYS
        for each in _runs_in(overrides.get(key))
        if isinstance(each, str) and each.startswith(_VARIANT)
    ]


def with_folders(overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The overrides of the run in a folder, with the folders of the runs that teach it."""
    found = dict(overrides)
    for key in _KEYS:
        runs = [
            str(_of_seed(folder, each.removeprefix(_VARIANT)))
            if isinstance(each, str) and each.startswith(_VARIANT)
            else each
            for each in _runs_in(overrides.get(key))
        ]
        if runs and isinstance(overrides[key], dict):
            found[key] = {**overrides[key], "runs": runs}
        elif runs:
            found[key] = runs
    return found


def teacher_folders(overrides: dict[str, Any], folder: Path) -> list[Path]:
    """The folders of the study's runs that teach the one in a folder."""
    return [_of_seed(folder, variant) for variant in teacher_variants(overrides)]


def _runs_in(teacher: Any) -> list[Any]:
    """What is named as `runs` in a value of `training.teacher`, or of `training.teacher.runs`."""
    runs = teacher.get("runs") if isinstance(teacher, dict) else teacher
    return runs if isinstance(runs, list) else [] if runs is None else [runs]


def _of_seed(folder: Path, variant: str) -> Path:
    return folder.parent.parent / variant / folder.name


def with_seeds_of_students(
    seeds: Mapping[str, Iterable[int]], overrides: Mapping[str, dict[str, Any]]
) -> dict[str, set[int]]:
    """The seeds of each variant, and those of all whom it teaches; by variant, as their overrides."""
    found = {variant: set(of_variant) for variant, of_variant in seeds.items()}
    for _ in found:  # students may teach
        for variant in found:
            for teacher in teacher_variants(overrides[variant]):
                found.get(teacher, set()).update(found[variant])
    return found


def teachers_first(runs: Sequence[R]) -> list[R]:
    """The runs in their order, but each after its teachers.

    Raises UserError for a teacher that is no variant, or learns from its own student.
    """
    by_folder = {run.folder: run for run in runs}
    ordered: dict[Path, R] = {}

    def place(run: R, students: tuple[str, ...]) -> None:
        if run.variant in students:
            raise UserError(
                f"variant {run.variant!r} is its own teacher ({' <- '.join([*students, run.variant])})"
            )
        for need in run.needs:
            if need not in by_folder:
                raise UserError(
                    f"variant {run.variant!r}: its teacher would be {need}, which is no run of this study; name "
                    "one of its variants"
                )
            place(by_folder[need], (*students, run.variant))
        ordered.setdefault(run.folder, run)

    for run in runs:
        place(run, ())
    return list(ordered.values())


def waves(runs: Sequence[R]) -> Iterator[list[R]]:
    """The runs in groups: those of one need none but those of groups before."""
    left = list(runs)
    while left:
        folders = {run.folder for run in left}
        ready = [run for run in left if not folders.intersection(run.needs)]
        yield ready
        left = [run for run in left if run not in ready]
