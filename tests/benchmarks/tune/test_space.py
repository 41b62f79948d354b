"""The `tune` section: what it refuses, and what a variant makes of its keys."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cetnet.benchmarks.study.definition import Study
from cetnet.benchmarks.tune.check import trials_of
from cetnet.benchmarks.tune.space import Setting, expanded, representatives
from cetnet.benchmarks.tune.trials import Trials
from cetnet.trainer.errors import UserError

LR = {"optimizer.dense.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
COMPONENTS = {"a": {"kind": "dnn", "dropout": 0.1}, "b": {"kind": "fm"}}


def write(tmp_path: Path, tune: dict[str, Any], **changes: Any) -> Path:
    study = {
        "name": "small",
        "base": "base.yaml",
        "nproc": 1,
        "seeds": [1, 2],
        "baseline": "one",
        "variants": {"one": {}, "two": {"optimizer.dense.lr": 0.5, "model.components": COMPONENTS}},
        "tune": tune,
    } | changes
    (tmp_path / "base.yaml").write_text("{data: {path: data}, model: {components: {x: {kind: dnn}}}}")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return tmp_path / "study.yaml"


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({}, "there is nothing to tune: name keys under `shared` or `variants`"),
        ({"shared": LR, "seeds": [7, 2]}, "tune.seeds: 2 is a seed of the study"),
        ({"shared": LR, "seeds": [4]}, "tune.seeds: 4 is a seed of the study"),  # which `until` may add
        ({"shared": LR, "seeds": [7, 7]}, "has a seed twice"),
        ({"shared": LR, "split": "test"}, "tune.split: 'test' is what the study reports"),
        ({"shared": LR, "variants": {"o*": LR}}, "variants.o*: 'optimizer.dense.lr' is shared already"),
        ({"shared": LR, "variants": {"three": {}}}, "'three' is none of the variants one, two"),
        ({"shared": {"training.seed": {"choices": [1]}}}, "'training.seed' is set by `cetnet tune` itself"),
        ({"shared": {"a.b": {"low": 2, "high": 1}}}, "low 2 is not below high 1"),
        ({"shared": {"a.b": {"low": 0, "high": 1, "log": True}}}, "low 0 is not above 0"),
        ({"shared": {"a.b": {"low": 0}}}, "choices, or low and high, are expected"),
        ({"shared": {"a.b": {"choices": [1], "low": 0}}}, "choices, or low and high, but not both"),
        ({"shared": LR, "sampler": "grid"}, "grid needs choices, and 'optimizer.dense.lr' has a range"),
        (
            {"shared": {"a.b": {"choices": [1, 2]}}, "sampler": "grid"},
            "'one' has 2 points, but there are 9",
        ),
    ],
)
def test_refuses(tmp_path: Path, tune: dict[str, Any], message: str) -> None:
    path = write(tmp_path, tune, until={"max_seeds": 6})
    with pytest.raises(UserError, match=re.escape(message)):
        Study.load(path)


def test_every_choice_and_end_is_in_a_representative() -> None:
    space = {"a": Setting(choices=(1, [2], "x")), "b": Setting(low=0, high=1), "c": Setting(choices=(5,))}
    found = representatives(space)
    assert found[0] == {}
    for key, setting in space.items():
        assert all(any(values[key] == end for values in found[1:]) for end in setting.ends)
    assert len(found) == 4


def test_a_pattern_stands_for_the_components_that_have_the_key() -> None:
    settings = {"model": {"components": COMPONENTS}, "data": {"batch_size": 8}}
    fields = {"dnn": frozenset({"kind", "dropout"}), "fm": frozenset({"kind"})}
    values = {
        "model.components.*.dropout": 0.3,
        "model.components.b*.embedding_std": 0.1,
        "data.batch_size": 4,
    }
    assert expanded(settings, values, {}) == {
        "data.batch_size": 4,
        "model.components.a.dropout": 0.3,
        "model.components.b.dropout": 0.3,
        "model.components.b.embedding_std": 0.1,
    }
    assert "model.components.b.dropout" not in expanded(settings, values, fields)
    # A whole section comes first, and its components are those that count.
    section = {"model.components.*.dropout": 0.3, "model.components": {"c": {"kind": "dnn"}}}
    changes = expanded(settings, section, fields)
    assert list(changes) == ["model.components", "model.components.c.dropout"]
    assert settings["model"]["components"] is COMPONENTS
    assert COMPONENTS["a"]["dropout"] == 0.1


def test_a_trial_is_the_variant_with_values_on_validation_alone(tmp_path: Path) -> None:
    tune = {"shared": LR | {"model.components.*.embedding_std": {"choices": [0.01, 0.1]}}, "seeds": [8, 9]}
    path = write(tmp_path, tune, common={"data.batch_size": 32, "checkpoint.path": "elsewhere"})
    study = Study.load(path)
    trial = Trials(study, path, "two").make(
        3, {"optimizer.dense.lr": 0.003, "model.components.*.embedding_std": 0.01}, every=64
    )
    assert trial.overrides == {
        "model.components": COMPONENTS,
        "optimizer.dense.lr": 0.003,
        "model.components.a.embedding_std": 0.01,
        "model.components.b.embedding_std": 0.01,
    }
    assert [run.folder for run in trial.runs] == [
        Path(f"runs/small/tune/two/trial003/seed{n}") for n in (8, 9)
    ]
    arguments = trial.runs[0].arguments
    for expected in (
        "evaluation.splits=[validation]",
        "training.log_every=2",
        "training.seed=8",
        "checkpoint.path=null",
    ):
        assert expected in arguments
    # What `cetnet study` makes of the chosen settings is what was tried, but for what a trial sets itself.
    (tmp_path / "chosen.yaml").write_text(
        yaml.safe_dump({"one": {}, "two": dict(trial.overrides)}, sort_keys=False)
    )
    assert Study.load(write(tmp_path, tune, variants="chosen.yaml")).variants["two"] == trial.overrides


def test_students_of_the_study_are_not_tuned(tmp_path: Path) -> None:
    variants = {"one": {}, "student": {"training.teacher": "variant:one"}}
    path = write(tmp_path, {"shared": LR}, variants=variants)
    assert [trials.variant for trials in trials_of(Study.load(path), path)] == ["one"]


def test_a_trial_that_would_read_the_study_split_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"shared": LR}, common={"evaluation": {"validation": "test", "every_epoch": True}})
    with pytest.raises(UserError, match="a trial would read split 'test', which the study reports"):
        Trials(Study.load(path), path, "one").make(0, {})


def test_shared_keys_without_a_meaning_are_dropped_and_a_variants_own_refused(tmp_path: Path) -> None:
    dropout = {"model.components.*.dropout": {"choices": [0.1, 0.2]}}
    fields = {"dnn": frozenset({"kind"}), "fm": frozenset({"kind"})}
    path = write(tmp_path, {"shared": LR | dropout})
    assert list(Trials(Study.load(path), path, "two", fields).space()) == list(LR)
    path = write(tmp_path, {"shared": LR, "variants": {"two": dropout}})
    with pytest.raises(UserError, match=r"'model.components.\*.dropout' fits no component of 'two'"):
        Trials(Study.load(path), path, "two", fields).space()
