"""The experiment file, the learning-rate schedule, and which versions belong together."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn, optim
from torchrec.optim.keyed import KeyedOptimizerWrapper

from cetnet.models.dcnv2 import DCNv2Config
from cetnet.trainer.config import OptimizerConfig, RunConfig, load_config
from cetnet.trainer.errors import UserError
from cetnet.trainer.schedule import LearningRate, schedule
from cetnet.trainer.versions import check_loading, check_versions, installed_versions, version_problem
from cetnet.trainer.yaml_files import save_yaml
from tests.paths import CONFIGS

MINIMAL = {"data": {"path": "data"}, "model": {"components": {"tower": {"kind": "dcnv2"}}}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_defaults(file: Path) -> None:
    config = load_config(file)
    assert config.data.path == Path("data")
    assert config.data.batch_size == 4096
    assert config.training.epochs == 1
    assert config.optimizer.sparse.kind == "rowwise_adagrad"
    assert config.checkpoint.every_steps is None
    component = config.model.components["tower"]
    assert isinstance(component, DCNv2Config)
    assert component.hidden_units == (512, 256, 128)


def test_overrides_are_yaml_and_the_last_one_counts(file: Path) -> None:
    config = load_config(
        file,
        [
            "training.seed=7",
            "training.seed=8",
            "optimizer.dense.lr=1e-2",
            "optimizer.clip_norm=null",
            "model.components.tower.hidden_units=[8, 4]",
            "model.components.second={kind: dhen, embedding_dim: 4}",
            "run_dir=runs/a=b",
        ],
    )
    assert config.training.seed == 8
    assert config.optimizer.dense.lr == 0.01
    assert config.optimizer.clip_norm is None
    assert list(config.model.components) == ["tower", "second"]
    assert config.model.components["tower"].model_dump()["hidden_units"] == (8, 4)
    assert config.run_dir == Path("runs/a=b")


def test_an_override_of_a_section_replaces_it_whole(file: Path) -> None:
    config = load_config(file, ["model.components={only: {kind: interformer}}"])
    assert list(config.model.components) == ["only"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.sede=7", "training.sede: unknown key"),
        ("model.components.tower.deep=1", "deep: unknown key"),
        ("training.seed=x", r"training.seed: .*integer.* \(got 'x'\)"),
        ("training.seed=-1", r"training.seed: .*greater than or equal to 0 \(got -1\)"),
        ("training.seed", "'training.seed' is not of the form key=value"),
        ("=7", "'=7' is not of the form key=value"),
        ("training.seed=[", r"'training.seed=\[': the value is not YAML"),
        ("data.path.deeper=1", "'path' is a value, not a section"),
        ("model.components={}", "model.components: .*at least 1 item"),
        ("model.components.a__b={kind: dcnv2}", "components.a__b: 'a__b' can't be a component's name, which"),
        (
            "model.components.fused={kind: dcnv2}",
            "'fused' can't be a component's name, .* none of fused, row",
        ),
        (
            "model.components.weight={kind: dcnv2}",
            "'weight' can't be a component's name, .* none of fused, row",
        ),
        ("model.components.tower={}", "components.tower: no kind is given"),
        (
            "model.components.tower.kind=mlp",
            "unknown component kind 'mlp'; known: dcn, dcnv2, deepfm, dhen, .*, or the dotted path",
        ),
        (
            "data.batch_size=100",
            "data.batch_size=100 is not a multiple of data.lanes=16; set data.batch_size=96",
        ),
        ("evaluation.early_stopping={}", "needs evaluation.every_epoch or evaluation.every_steps"),
        ("sharding.constraints={a: {sharding_types: [rows]}}", "sharding.constraints.a.sharding_types"),
        ("checkpoint.path=''", "checkpoint.path: empty; leave it out"),
        (f"checkpoint.path=a/{'x' * 256}", "checkpoint.path: .* a name in it of more than 200"),
    ],
)
def test_mistakes_name_the_key(file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_config(file, [override])
    assert "\n" not in str(error.value)


def test_several_mistakes_are_counted(file: Path) -> None:
    with pytest.raises(UserError, match=r"\(and 1 more\)"):
        load_config(file, ["training.epochs=0", "data.sede=1"])


def test_the_saved_configuration_loads_to_the_same(file: Path, tmp_path: Path) -> None:
    config = load_config(
        file,
        ["optimizer.clip_norm=1.0", "model.components.tower.hidden_units=[8]", "evaluation.splits=[test]"],
    )
    save_yaml(tmp_path / "saved.yaml", config)
    assert load_config(tmp_path / "saved.yaml") == config


def test_the_configuration_is_frozen(file: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config(file).run_dir = Path("elsewhere")


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        (
            "cosine",
            [
                0.25,
                0.5,
                0.75,
                1,
                1,
                1 - 0.8 * (1 - math.sqrt(0.5)) / 2,
                0.6,
                0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2,
                0.2,
            ],
        ),
    ],
)
def test_schedule(decay: str, expected: list[float]) -> None:
    config = OptimizerConfig.model_validate(
        {"warmup_steps": 4, "decay": decay, "decay_share": 1, "final_lr": 0.2}
    )
    assert [schedule(config, step, 9) for step in range(9)] == pytest.approx(expected)


def test_it_falls_in_the_last_steps_only() -> None:
    config = OptimizerConfig.model_validate({"warmup_steps": 2, "decay": "linear", "decay_share": 0.3})
    expected = [0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0, 0]
    assert [schedule(config, step, 10) for step in range(11)] == pytest.approx(expected)
    by_default = [schedule(OptimizerConfig(), step, 20) for step in range(20)]
    assert by_default == pytest.approx([1.0] * 17 + [2 / 3, 1 / 3, 0])


@given(
    st.integers(0, 10),
    st.sampled_from(["none", "linear", "cosine"]),
    st.floats(0.001, 1),
    st.floats(0, 1),
    st.integers(1, 30),
)
def test_schedule_stays_between_its_ends(
    warmup: int, decay: str, share: float, final_lr: float, total: int
) -> None:
    config = OptimizerConfig.model_validate(
        {"warmup_steps": warmup, "decay": decay, "decay_share": share, "final_lr": final_lr}
    )
    values = [schedule(config, step, total) for step in range(total)]
    assert all(0 <= value <= 1 + 1e-12 for value in values)
    assert all(value >= final_lr - 1e-12 for value in values[warmup:])
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    if decay != "none" and total > warmup + 1:
        assert values[-1] == pytest.approx(final_lr)


def test_learning_rate_scales_every_group() -> None:
    layers = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
    optimizer = KeyedOptimizerWrapper(
        {name: layer.weight for name, layer in layers.items()},
        lambda parameters: optim.SGD(
            [{"params": [p], "lr": 0.1 * (i + 1)} for i, p in enumerate(parameters)]
        ),
    )
    lr = LearningRate(optimizer, OptimizerConfig(warmup_steps=4), total_steps=10)
    lr.set(1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1])
    lr.plateau = 0.1
    lr.set(8)
    assert lr.scale == pytest.approx(0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.02])


@pytest.mark.parametrize(
    ("torch", "fbgemm", "torchrec", "problem"),
    [
        ("2.13.0+cpu", "1.8.0 (fbgemm-gpu-cpu)", "1.8.0", None),
        ("2.14.1", "1.9.0 (fbgemm-gpu)", "1.9.2", None),
        ("2.13.0", "1.7.0 (fbgemm-gpu)", "1.8.0", "fbgemm-gpu does not belong"),
        ("2.13.0", "1.8.0 (fbgemm-gpu)", "1.7.0", "torchrec does not belong"),
        ("2.12.0", "1.8.0 (fbgemm-gpu)", "1.8.0", "fbgemm-gpu does not belong"),
        ("1.13.0", "1.8.0 (fbgemm-gpu)", "1.8.0", "fbgemm-gpu does not belong"),
        ("2.13.0", "2025.1.31 (fbgemm-gpu)", "1.8.0", "fbgemm-gpu does not belong"),
        ("2.13.0", "not installed", "1.8.0", "fbgemm-gpu is not installed"),
        ("not installed", "1.8.0 (fbgemm-gpu)", "1.8.0", "torch is not installed"),
        ("2.13.0", "1.8.0 (fbgemm-gpu-cpu) and 1.8.0 (fbgemm-gpu)", "1.8.0", "both builds"),
    ],
)
def test_versions_that_belong_together(torch: str, fbgemm: str, torchrec: str, problem: str | None) -> None:
    found = version_problem({"torch": torch, "fbgemm-gpu": fbgemm, "torchrec": torchrec})
    assert found is None if problem is None else problem in str(found)


def test_this_environment_is_sound() -> None:
    check_versions()
    check_loading()
    assert "not installed" not in installed_versions().values()


def test_every_key_of_the_example_is_known() -> None:
    for path in CONFIGS.glob("*.yaml"):
        if "data" in yaml.safe_load(path.read_text()):
            assert isinstance(load_config(path), RunConfig)
