"""Configuration is read, and components are listed, without waiting for torch."""

import subprocess
import sys

import pytest

from cetnet.models.registry import COMPONENTS, component_class, component_summary

WITHOUT_TORCH = """
import sys
import cetnet.models.registry, cetnet.models.rules, cetnet.models.schema, cetnet.models.strict
import cetnet.sharding.cluster, cetnet.sharding.config
from cetnet.models.config import CETNetConfig

cetnet.sharding.cluster.parse_cluster("64x8:h100")
assert cetnet.models.registry.component_summary("dcn")
model = {"components": {"a": {"kind": "dnn", "copies": 2, "hidden_units": "none"}}, "shared_tables": True}
config = CETNetConfig.model_validate(model, context={"components": False})
assert config.outputs == ["fused", "a_1", "a_2"]
assert config.components["a_1"] == {"kind": "dnn", "hidden_units": "none"}
for wrong in ({"components": {}}, {"components": {"a": {"kind": "no"}}}, model | {"fusion": {"mode": "no"}}):
    try:
        CETNetConfig.model_validate(wrong, context={"components": False})
    except ValueError:
        continue
    raise AssertionError(wrong)
assert not {"torch", "torchrec"} & set(sys.modules)
"""


def test_configuration_without_torch() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)


@pytest.mark.parametrize("kind", COMPONENTS)
def test_summaries_are_the_docstrings(kind: str) -> None:
    assert component_summary(kind) == (component_class(kind).__doc__ or "").splitlines()[0] != ""
