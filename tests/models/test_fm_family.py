"""DCN, FM, DeepFM, Wide & Deep and xDeepFM on their smallest inputs."""

from typing import Any

import pytest

from cetnet.models.component import Component, InputShape
from cetnet.models.component_config import ComponentConfig
from cetnet.models.dcn import DCNConfig
from cetnet.models.deepfm import DeepFMConfig
from cetnet.models.fm import FMConfig
from cetnet.models.registry import component_class
from cetnet.models.wide_deep import WideDeepConfig
from cetnet.models.xdeepfm import XDeepFMConfig
from tests.models.inputs import random_inputs

SMALL: dict[str, Any] = {"embedding_dim": 4, "hidden_units": (6, 5)}
CONFIGS: dict[str, ComponentConfig] = {
    "dcn": DCNConfig(**SMALL, num_cross_layers=2),
    "fm": FMConfig(embedding_dim=4),
    "deepfm": DeepFMConfig(**SMALL),
    "wide_deep": WideDeepConfig(**SMALL),
    "xdeepfm": XDeepFMConfig(**SMALL, cin_units=(3, 2)),
    "xdeepfm_cin": XDeepFMConfig(embedding_dim=4, hidden_units=(), cin_units=(3,)),
}


def build(config: ComponentConfig, shape: InputShape) -> Component:
    return component_class(config.kind)(shape, config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_number_as_the_only_feature(config: ComponentConfig) -> None:
    shape = InputShape(0, 0, 0, 1, config.embedding_dim)
    component = build(config, shape)
    embedding, logit, _ = component(random_inputs(shape, 2))
    logit.sum().backward()
    assert embedding.shape == (2, component.output_dim)
    assert all(parameter.grad is not None for parameter in component.parameters())


def test_embeddings_start_as_in_the_benchmark() -> None:
    assert {config.embedding_std for config in CONFIGS.values()} == {1e-4}
