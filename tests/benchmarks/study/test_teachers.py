"""Students whose teachers are variants of the same study."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cetnet.benchmarks.study.check import check_study
from cetnet.benchmarks.study.definition import Run, Study, runs_of
from cetnet.benchmarks.study.teachers import is_student, waves
from cetnet.trainer.config import load_config, read_settings
from cetnet.trainer.errors import UserError
from tests.data import write_dataset

DCNV2 = {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]}
VARIANTS: dict[str, Any] = {
    "student": {"training.teacher": "variant:pair"},
    "of_two": {"training.teacher": {"runs": ["variant:pair", "variant:single"], "weighting": "adaptive"}},
    "of_another": {"training.teacher.runs": ["elsewhere"], "training.teacher.weight": 0.1},
    "pupil": {"training.teacher.runs": "variant:student"},
    "single": {},
    "pair": {"model.components": {"only": {**DCNV2, "copies": 2}}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = {"data": {"path": "data", "batch_size": 64, "lanes": 4}, "model": {"components": {"only": DCNV2}}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    return tmp_path


def write(folder: Path, variants: dict[str, Any], **changes: Any) -> Path:
    study = {"name": "small", "base": "base.yaml", "nproc": 1, "seeds": [1, 2], "baseline": "single"}
    path = folder / "study.yaml"
    path.write_text(
        yaml.safe_dump({**study, "variants": variants, **changes}, sort_keys=False), encoding="utf-8"
    )
    return path


def runs(path: Path) -> list[Run]:
    return runs_of(Study.load(path), path)


def test_teachers_come_first_and_are_of_the_same_seed(folder: Path) -> None:
    found = runs(write(folder, VARIANTS))
    order = ["pair", "student", "single", "of_two", "of_another", "pupil"]
    assert [(run.variant, run.seed) for run in found] == [(name, seed) for seed in (1, 2) for name in order]
    teachers = {
        run.variant: load_config(run.base, run.overrides, resolve=False).training.teacher for run in found[6:]
    }
    of = Path("runs/small")
    expected = {
        "student": [of / "pair/seed2"],
        "of_two": [of / "pair/seed2", of / "single/seed2"],
        "of_another": [Path("elsewhere")],
        "pupil": [of / "student/seed2"],
    }
    assert {name: list(each.runs) for name, each in teachers.items() if each} == expected
    needs = {run.variant: run.needs for run in found[6:] if run.needs}
    assert needs == {name: each for name, each in expected.items() if name != "of_another"}
    assert [[run.variant for run in wave] for wave in waves(found[:6])] == [
        ["pair", "single", "of_another"],
        ["student", "of_two"],
        ["pupil"],
    ]


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (
            {"a": {"training.teacher": "variant:b"}},
            "'a': its teacher would be runs/small/b/seed1",
        ),
        (
            {"a": {"training.teacher": "variant:b"}, "b": {"training.teacher": ["variant:a"]}},
            r"'a' is its own teacher \(a <- b <- a\)",
        ),
    ],
)
def test_students_without_a_teacher(folder: Path, variants: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        runs(write(folder, {**variants, "single": {}}))


def test_teachers_are_trained_with_the_further_seeds_of_their_students(folder: Path) -> None:
    more = {"seeds": [3], "variants": ["pupil"]}
    found = runs(write(folder, VARIANTS, more_seeds=more))
    assert [run.variant for run in found if run.seed == 3] == ["pair", "student", "pupil"]
    path = write(folder, VARIANTS, until={"max_seeds": 6})
    further = runs_of(Study.load(path), path, {"student": 4})
    assert [(run.variant, run.seed) for run in further[12:]] == [
        ("pair", 3),
        ("student", 3),
        ("pair", 4),
        ("student", 4),
    ]


def test_only_a_run_whose_teachers_are_finished_is_ready(folder: Path) -> None:
    found = {run.variant: run for run in runs(write(folder, VARIANTS)) if run.seed == 1}
    assert [name for name, run in found.items() if run.ready] == ["pair", "single", "of_another"]
    for variant in ("pair", "single"):
        found[variant].folder.mkdir(parents=True)
        (found[variant].folder / "result.json").write_text("{}", encoding="utf-8")
    assert [name for name, run in found.items() if not run.ready] == ["pupil"]


def test_teachers_that_are_still_to_be_trained_are_none_to_be_checked(folder: Path) -> None:
    write_dataset(folder / "data", {"train": 100, "validation": 50, "test": 50})
    check_study(write(folder, {name: VARIANTS[name] for name in ("student", "single", "pair")}))
    with pytest.raises(UserError, match=r"'of_another': training.teacher: elsewhere: no config\.yaml"):
        check_study(write(folder, {name: VARIANTS[name] for name in ("of_another", "single")}))


def test_students_are_those_that_learn_from_runs_here_or_elsewhere(folder: Path) -> None:
    found = runs(write(folder, {**VARIANTS, "none": {"training.teacher": None}}))
    assert {run.variant for run in found if is_student(read_settings(run.base, run.overrides))} == {
        "student",
        "of_two",
        "of_another",
        "pupil",
    }


def test_until_can_not_decide_students_by_progressive_ne(folder: Path) -> None:
    write_dataset(folder / "data", {"train": 100, "validation": 50, "test": 50})
    variants = {name: VARIANTS[name] for name in ("student", "single", "pair")}
    check_study(write(folder, variants, until={"monitor": "ne"}))
    with pytest.raises(
        UserError, match=r"variant 'student': a student has no progressive NE, .* until\.monitor"
    ):
        check_study(write(folder, variants, until={"monitor": "progressive"}))
    check_study(write(folder, {"single": {}, "pair": VARIANTS["pair"]}, until={"monitor": "progressive"}))
