"""CONTRIBUTING's example of a user's own component, as it stands there, trained as part of CETNet."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cetnet.models.component import Component, InputShape
from cetnet.models.component_config import ComponentConfig
from cetnet.models.config import CETNetConfig
from cetnet.trainer.config import RunConfig
from cetnet.trainer.session import build_model
from tests.data import make_schema, write_dataset
from tests.paths import ROOT
from tests.processes import run_processes, run_settings, train_all

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


def code_block(language: str) -> str:
    found = re.search(rf"## Train a component of your own.*?```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", {"train": 256, "test": 100})
    return tmp_path / "data"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site" / "clicklab"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "mean_mlp.py").write_text(code_block("python"))
    monkeypatch.syspath_prepend(str(folder.parent))


@pytest.mark.usefixtures("package")
def test_the_example_trains_in_two_processes(dataset: Path, tmp_path: Path) -> None:
    assert len(code_block("python").splitlines()) < 40
    model = yaml.safe_load(code_block("yaml"))["model"]
    run_processes(train_all, 2, [run_settings(dataset, tmp_path / "run", model=model)])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for output in ("fused", "mine", "dhen"):
        assert 0 < result["splits"]["test"][f"ne/{output}"] < 2


@pytest.mark.usefixtures("package")
def test_its_configuration_is_checked() -> None:
    with pytest.raises(ValidationError, match="no_such_setting"):
        CETNetConfig.model_validate(
            {"components": {"mine": {"kind": "clicklab.mean_mlp.MeanMLP", "no_such_setting": 1}}}
        )


class Broken(Component):
    Config = ComponentConfig

    def __init__(self, shape: InputShape, config: ComponentConfig) -> None:
        raise RuntimeError(f"a bug with {shape} and {config}")


def test_a_bug_in_its_constructor_is_no_mistake_of_the_configuration(tmp_path: Path) -> None:
    model = {"components": {"mine": {"kind": f"{__name__}.Broken"}}}
    config = RunConfig.model_validate(run_settings(tmp_path / "data", tmp_path / "run", model=model))
    with pytest.raises(RuntimeError, match="a bug"):
        build_model(config, make_schema(), "meta")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_package.Class", "cannot be imported: No module named 'no_such_package'"),
        ("cetnet.models.component.Missing", "cannot be imported"),
        ("cetnet.models.config.CETNetConfig", "not a subclass of cetnet.models.component.Component"),
        ("os.system", "not a subclass"),
        ("cetnet.models.component.Component", "with a Config"),
        ("..x", "cannot be imported"),
    ],
)
def test_paths_that_lead_to_no_component(kind: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CETNetConfig.model_validate({"components": {"mine": {"kind": kind}}})
