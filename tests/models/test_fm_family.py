"""DCN, FM, DeepFM, Wide & Deep and xDeepFM: their sizes, published by BARS, and their smallest inputs."""

from typing import Any

import pytest
import torch

from models.component import Component, ComponentConfig, InputShape
from models.dcn import DCNConfig
from models.deepfm import DeepFMConfig
from models.fm import FMConfig
from models.registry import component_class
from models.wide_deep import WideDeepConfig
from models.xdeepfm import XDeepFMConfig
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


MLP: dict[str, Any] = {"embedding_dim": 10, "hidden_units": (400,) * 3}
BN: dict[str, Any] = {"batch_norm": True}
CIN: dict[str, Any] = {"embedding_dim": 10, "hidden_units": ()}
# Data: rows of the tables, rows of the linear part's tables, fields, dense features.
FRAPPE = (5_389, 5_389, 10, 0)
MOVIELENS = (90_239, 90_239, 3, 0)
AVAZU = (1_298_599, 1_298_599, 22, 0)
CRITEO = (2_086_303, 2_086_303, 26, 13)
AMAZON = (63_806, 2 * 63_806, 4, 0)  # histories share the embeddings, not the weights
# Name: data, settings, published total; the BARS benchmark's logs.
PUBLISHED: dict[str, tuple[tuple[int, int, int, int], ComponentConfig, int]] = {
    "dcn_movielens": (MOVIELENS, DCNConfig(**MLP, **BN, num_cross_layers=4), 1_238_661),
    "dcn_criteo": (CRITEO, DCNConfig(**MLP, num_cross_layers=3), 21_343_491),
    "dcn_amazon": (
        AMAZON,
        DCNConfig(embedding_dim=64, hidden_units=(1024, 512, 256), num_cross_layers=6),
        5_006_465,
    ),
    "fm_frappe": (FRAPPE, FMConfig(embedding_dim=10), 59_280),
    "fm_criteo": (CRITEO, FMConfig(embedding_dim=10), 22_949_477),
    "deepfm_frappe": (FRAPPE, DeepFMConfig(**MLP, **BN), 423_280),
    "deepfm_criteo": (CRITEO, DeepFMConfig(**MLP, **BN), 23_429_477),
    "wide_deep_criteo": (CRITEO, WideDeepConfig(**MLP, **BN), 23_429_477),
    "xdeepfm_frappe": (FRAPPE, XDeepFMConfig(**MLP, **BN, cin_units=(64,)), 429_809),
    "xdeepfm_movielens": (MOVIELENS, XDeepFMConfig(**MLP, cin_units=(64,) * 3), 1_351_767),
    "xdeepfm_avazu": (AVAZU, XDeepFMConfig(**MLP, **BN, cin_units=(64,)), 14_727_695),
    "xdeepfm_criteo": (CRITEO, XDeepFMConfig(**MLP, cin_units=(16, 16)), 23_461_462),
    "xdeepfm_amazon": (
        AMAZON,
        XDeepFMConfig(embedding_dim=64, hidden_units=(1024, 512, 256), **BN, cin_units=(256,) * 3),
        5_664_254,
    ),
    "cin_movielens": (MOVIELENS, XDeepFMConfig(**CIN, cin_units=(32,) * 4), 1_002_390),
    "cin_avazu": (AVAZU, XDeepFMConfig(**CIN, cin_units=(64,) * 3), 14_496_174),
    "cin_criteo": (CRITEO, XDeepFMConfig(**CIN, cin_units=(32,) * 5), 23_158_213),
}


@pytest.mark.parametrize(("data", "config", "published"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameter_count_is_the_published_one(
    data: tuple[int, int, int, int], config: ComponentConfig, published: int
) -> None:
    rows, linear_rows, fields, num_dense = data
    with torch.device("meta"):
        component = build(config, InputShape(fields, 0, 0, num_dense, config.embedding_dim))
    tables = rows * config.embedding_dim + (0 if config.kind == "dcn" else linear_rows)
    assert tables + sum(p.numel() for p in component.parameters()) == published


def test_embeddings_start_as_in_the_benchmark() -> None:
    assert {config.embedding_std for config in CONFIGS.values()} == {1e-4}
