"""Study files with mistakes."""

import re
from pathlib import Path
from typing import Any

import pytest

from cetnet.benchmarks.study.definition import Study, runs_of
from cetnet.benchmarks.study.run import run_study
from cetnet.trainer.errors import UserError
from tests.benchmarks.study import fake_trainer
from tests.benchmarks.study.studies import Make, calls, run


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("", "base.yaml: a mapping of keys to values is expected"),
        ("[1]", "base.yaml: a mapping of keys to values is expected"),
        ("checkpoint: 5", "base.yaml: checkpoint: a mapping is expected"),
        ("checkpoint: {path: [a]}", "base.yaml: checkpoint.path: text is expected"),
    ],
)
def test_bad_base_files(make: Make, base: str, message: str) -> None:
    path = make()
    Path("base.yaml").write_text(base, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        run(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "sedes: unknown key"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "seeds [1, 1] has a seed twice"),
        ({"more_seeds": {"seeds": [2], "variants": ["pair"]}}, "seeds [1, 2, 2] has a seed twice"),
        (
            {"more_seeds": {"seeds": [3], "variants": ["pair", "dubl*"]}},
            "more_seeds.variants: 'dubl*' is none of the variants single, pair",
        ),
        ({"baseline": "double"}, "baseline 'double' is not one of the variants single, pair"),
        ({"variants": {"single": {"run_dir": "x"}}}, "'single' sets 'run_dir', which the study sets"),
        ({"variants": {"single": {}, "../up": {}}}, "variants.../up"),
        ({"baseline": ["single", "double"]}, "baseline 'double' is not one of the variants single, pair"),
        ({"also": {"pair": ["double"]}}, "also: 'double' is not one of the variants single, pair"),
        ({"also": {"pair": ["pair"]}}, "also: 'pair' would be compared with itself"),
        ({"baseline": ["pair", "single"]}, "with several baselines, the first variant must be one"),
        ({"common": {"training.seed": 1}}, "'common' sets 'training.seed', which the study sets"),
        (
            {"paper": {"source": "x", "numbers": {"double": {"auc": 0.5}}}},
            "paper.numbers: 'double' is not one of the variants single, pair",
        ),
        (
            {"paper": {"source": "x", "numbers": {"pair": {"acu": 0.5}}}},
            "paper.numbers.pair.acu: unknown key",
        ),
        (
            {"until": {}, "more_seeds": {"seeds": [3], "variants": ["pair"]}},
            "until and more_seeds both say which variants have further seeds",
        ),
        ({"seeds": [1, 2, 3, 4], "until": {"max_seeds": 3}}, "until.max_seeds is 3, but there are 4 seeds"),
        ({"until": {"half_width": 0}}, "until.half_width: Input should be greater than 0"),
        ({"until": {"monitor": "auc"}}, "until.monitor: Input should be 'ne' or 'progressive'"),
        ({"nproc": 0}, "nproc: Input should be greater than 0"),
        ({"base": "absent.yaml"}, "absent.yaml: no such file"),
    ],
)
def test_bad_study_files(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        run(make(**changes))
    assert "\n" not in str(raised.value)
    assert calls() == []


@pytest.mark.parametrize("text", ["name: [", "", "- a list"])
def test_files_that_are_no_study(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path))) as raised:
        run_study(path, fake_trainer.train)
    assert "\n" not in str(raised.value)


def test_further_seeds_follow_the_largest_and_those_begun_are_not_forgotten(make: Make) -> None:
    path = make(seeds=[7, 2], until={"max_seeds": 5})

    def seeds(wanted: dict[str, int] | None = None) -> dict[str, list[int]]:
        runs = runs_of(Study.load(path), path, wanted)
        return {name: [run.seed for run in runs if run.variant == name] for name in ("single", "pair")}

    assert seeds() == {"single": [7, 2], "pair": [7, 2]}
    assert seeds({"single": 4}) == {"single": [7, 2, 8, 9], "pair": [7, 2]}
    assert seeds({"single": 9}) == {"single": [7, 2, 8, 9, 10], "pair": [7, 2]}
    begun = [run for run in runs_of(Study.load(path), path, {"pair": 4}) if run.seed == 9]
    begun[0].write_settings()
    assert seeds() == {"single": [7, 2], "pair": [7, 2, 8, 9]}
    assert seeds({"pair": 3, "single": 3}) == {"single": [7, 2, 8], "pair": [7, 2, 8, 9]}


def test_study_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"absent\.yaml: no such file"):
        run_study(Path("absent.yaml"), fake_trainer.train)
