"""Layers that multiply features, each against loops over rows, fields and layers."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from cetnet.models.component import Inputs
from cetnet.models.component_config import ComponentConfig
from cetnet.models.dcn import CrossNet
from cetnet.models.dcnv2 import CrossNetV2, LowRankCrossNet, MixtureCrossNet
from cetnet.models.layers.linear_part import ComponentWithLinearPart, LinearPart
from cetnet.models.layers.products import InnerProducts, PairwiseInteraction
from cetnet.models.xdeepfm import CompressedInteraction
from tests.models.inputs import small_schema


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomise_biases(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)


def test_crossnet() -> None:
    layer = CrossNet(6, 3)
    randomise_biases(layer)
    x0 = torch.randn(4, 6)
    rows = []
    for row in x0:
        x = row
        for weight, bias in zip(layer.weights, layer.biases, strict=True):
            x = row * weight.weight[0].dot(x) + bias + x
        rows.append(x)
    torch.testing.assert_close(layer(x0), torch.stack(rows))


def test_crossnet_v2() -> None:
    layer = CrossNetV2(6, 3)
    randomise_biases(layer)
    x0 = torch.randn(4, 6)
    rows = []
    for row in x0:
        x = row
        for cross in layer.layers:
            weights = zip(cross.weight, cross.bias, strict=True)
            steps = [row[i] * (weight.dot(x) + bias) for i, (weight, bias) in enumerate(weights)]
            x = torch.stack(steps) + x
        rows.append(x)
    torch.testing.assert_close(layer(x0), torch.stack(rows))


def test_low_rank_crosses_are_full_crosses_of_the_product() -> None:
    low, full = LowRankCrossNet(6, 2, rank=3), CrossNetV2(6, 2)
    randomise_biases(low)
    with torch.no_grad():
        for (down, up), layer in zip(low.layers, full.layers, strict=True):  # type: ignore[misc]
            layer.weight.copy_(up.weight @ down.weight)
            layer.bias.copy_(up.bias)
    x0 = torch.randn(4, 6)
    torch.testing.assert_close(low(x0), full(x0))


@pytest.mark.parametrize("num_experts", [1, 3])
def test_mixture_of_crosses(num_experts: int) -> None:
    layer = MixtureCrossNet(5, 2, rank=2, num_experts=num_experts)
    nn.init.normal_(layer.biases)
    x0 = torch.randn(4, 5)
    rows = []
    for row in x0:
        x = row
        for n in range(2):
            gates = torch.ones(1) if layer.gates is None else (layer.gates.weight @ x).softmax(0)
            step = torch.zeros(5)
            for k in range(num_experts):
                inner = (layer.c[n, k] @ (layer.v[n, k].T @ x).tanh()).tanh()
                step = step + gates[k] * row * (layer.u[n, k] @ inner + layer.biases[n])
            x = step + x
        rows.append(x)
    torch.testing.assert_close(layer(x0), torch.stack(rows))


def test_compressed_interaction() -> None:
    layer = CompressedInteraction(3, (4, 2))
    randomise_biases(layer)
    tokens = torch.randn(5, 3, 6)
    rows = []
    for fields in tokens:
        x, pooled = fields, []
        for weights in layer.layers:
            maps = []
            for weight, bias in zip(weights.weight, weights.bias, strict=True):
                matrix = weight.view(len(x), 3)
                pairs = itertools.product(range(len(x)), range(3))
                maps.append(sum((matrix[i, j] * x[i] * fields[j] for i, j in pairs), bias.expand(6)))
            x = torch.stack(maps)
            pooled.append(x.sum(1))
        rows.append(torch.cat(pooled))
    torch.testing.assert_close(layer(tokens), torch.stack(rows))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_inner_products_and_their_sum(n: int) -> None:
    tokens = torch.randn(4, n, 3)
    expected = [[row[i].dot(row[j]) for i, j in itertools.combinations(range(n), 2)] for row in tokens]
    layer = InnerProducts(n)
    products = layer(tokens)
    assert products.shape == (4, layer.num_outputs)
    torch.testing.assert_close(products, torch.tensor(expected).view(4, -1))
    torch.testing.assert_close(PairwiseInteraction()(tokens).sum(1), products.sum(1))
    with_self = InnerProducts(n, with_self=True)(tokens)
    torch.testing.assert_close(with_self.sum(1), (products.sum(1) + tokens.square().sum((1, 2))))


def test_linear_part_adds_a_weight_for_every_id_and_every_number() -> None:
    tables = ComponentWithLinearPart.extra_tables(
        ComponentConfig(kind="fm", embedding_dim=4), small_schema(2, 1, 2).features
    )
    assert [(table.feature, table.dim, table.pooling) for table in tables] == [
        ("c0", 1, "sum"),
        ("c1", 1, "sum"),
        ("s0", 1, "sum"),
    ]

    def inputs(dense: Tensor) -> Inputs:
        nothing = torch.zeros(2, 0)
        return Inputs(nothing, nothing, nothing, dense, torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]]))

    layer = LinearPart(2)
    assert layer.dense is not None
    layer.dense.data = torch.tensor([[10.0, 100.0]])
    assert layer(inputs(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))).tolist() == [216.0, 29.5]
    assert LinearPart(0)(inputs(torch.zeros(2, 0))).tolist() == [6.0, -0.5]
