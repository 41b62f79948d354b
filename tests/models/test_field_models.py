"""Models on field embeddings, each put together again from its paper's formula."""

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cetnet.models.component import Component, Inputs, InputShape
from cetnet.models.component_config import ComponentConfig
from cetnet.models.dcn import DCN, DCNConfig
from cetnet.models.deepfm import DeepFM, DeepFMConfig
from cetnet.models.finalmlp import FinalMLP, FinalMLPConfig
from cetnet.models.fm import FM, FMConfig
from cetnet.models.ipnn import IPNN, IPNNConfig
from cetnet.models.masknet import MaskNet, MaskNetConfig
from cetnet.models.registry import component_class
from cetnet.models.wide_deep import WideDeep, WideDeepConfig
from cetnet.models.wukong import Wukong, WukongConfig
from cetnet.models.xdeepfm import XDeepFM, XDeepFMConfig
from tests.models.inputs import random_inputs, small_schema, small_shape

MLP = {"embedding_dim": 4, "hidden_units": (6, 3)}


def build(config: ComponentConfig) -> tuple[Component, Inputs, Tensor]:
    """A component with no parameter at zero, inputs, and its tokens `[B, n, d]`: dense x_i become x_i v_i."""
    torch.manual_seed(0)
    shape = small_shape(config, small_schema(2, 1, 2))
    component = component_class(config.kind)(shape, config)  # type: ignore[call-arg]
    for parameter in component.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    inputs = random_inputs(shape, 5)
    vectors = component.inputs.fields  # type: ignore[union-attr]
    tokens = torch.cat([inputs.tokens, inputs.dense.unsqueeze(2) * vectors], dim=1)
    return component, inputs, tokens


def by_hand(layers: nn.Sequential, x: Tensor, activation: type[nn.Module] = nn.ReLU) -> Tensor:
    """An MLP of affine maps, each followed by the activation."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = activation()(x @ layer.weight.T + layer.bias)
    return x


def linear_part(component: Component, inputs: Inputs) -> Tensor:
    return inputs.extra.sum(1) + inputs.dense @ component.linear.dense[0]  # type: ignore[union-attr,index]


def pairwise(tokens: Tensor) -> Tensor:
    return sum(tokens[:, i] * tokens[:, j] for i, j in itertools.combinations(range(tokens.shape[1]), 2))  # type: ignore[return-value]


def affine(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight[0] + layer.bias[0]


@pytest.mark.parametrize("embeddings", [True, False])
def test_ipnn(embeddings: bool) -> None:
    component, inputs, tokens = build(IPNNConfig(**MLP, embeddings=embeddings))
    assert isinstance(component, IPNN)
    products = [
        (tokens[:, i] * tokens[:, j]).sum(1) for i, j in itertools.combinations(range(tokens.shape[1]), 2)
    ]
    features = torch.stack(products, dim=1)
    if embeddings:
        features = torch.cat([tokens.flatten(1), features], dim=1)
    hidden = by_hand(component.mlp, features)
    output = component(inputs)
    torch.testing.assert_close(output.embedding, hidden)
    torch.testing.assert_close(output.logit, affine(component.logit, hidden))


def test_ipnn_of_products_alone_needs_a_pair() -> None:
    with pytest.raises(ValueError, match="at least two features"):
        IPNN(InputShape(1, 0, 0, 0, 4), IPNNConfig(**MLP, embeddings=False))


def test_fm() -> None:
    component, inputs, tokens = build(FMConfig(embedding_dim=4))
    assert isinstance(component, FM)
    expected = component.bias + linear_part(component, inputs) + pairwise(tokens).sum(1)
    torch.testing.assert_close(component(inputs).logit, expected)
    torch.testing.assert_close(component(inputs).embedding, pairwise(tokens))


def test_deepfm() -> None:
    component, inputs, tokens = build(DeepFMConfig(**MLP))
    assert isinstance(component, DeepFM)
    hidden = by_hand(component.mlp, tokens.flatten(1))
    expected = linear_part(component, inputs) + pairwise(tokens).sum(1) + affine(component.logit, hidden)
    torch.testing.assert_close(component(inputs).logit, expected)
    torch.testing.assert_close(component(inputs).embedding, torch.cat([pairwise(tokens), hidden], dim=1))


def test_wide_deep() -> None:
    component, inputs, tokens = build(WideDeepConfig(**MLP))
    assert isinstance(component, WideDeep)
    hidden = by_hand(component.mlp, tokens.flatten(1))
    expected = linear_part(component, inputs) + affine(component.logit, hidden)
    torch.testing.assert_close(component(inputs).logit, expected)


def test_dcn() -> None:
    component, inputs, tokens = build(DCNConfig(**MLP))
    assert isinstance(component, DCN)
    x0 = tokens.flatten(1)
    both = torch.cat([component.crossnet(x0), by_hand(component.mlp, x0)], dim=1)
    torch.testing.assert_close(component(inputs).embedding, both)
    torch.testing.assert_close(component(inputs).logit, affine(component.logit, both))


@pytest.mark.parametrize("deep", [True, False])
def test_xdeepfm(deep: bool) -> None:
    settings = MLP if deep else {"embedding_dim": 4, "hidden_units": ()}
    component, inputs, tokens = build(XDeepFMConfig(**settings, cin_units=(3, 2)))
    assert isinstance(component, XDeepFM)
    maps = component.cin(tokens)
    expected = linear_part(component, inputs) + affine(component.cin_logit, maps)
    if deep:
        assert component.mlp is not None
        assert component.mlp_logit is not None
        hidden = by_hand(component.mlp, tokens.flatten(1))
        expected = expected + affine(component.mlp_logit, hidden)
        maps = torch.cat([maps, hidden], dim=1)
    torch.testing.assert_close(component(inputs).logit, expected)
    torch.testing.assert_close(component(inputs).embedding, maps)


@pytest.mark.parametrize(
    ("context1", "context2"), [((), ()), (("c0",), ("c1", "s0")), (("c0", "x1"), ("x0",)), ((), ("c1",))]
)
def test_finalmlp_gates_each_stream_by_its_context(
    context1: tuple[str, ...], context2: tuple[str, ...]
) -> None:
    config = FinalMLPConfig(
        **MLP,
        hidden_units2=(5, 6),
        num_heads=3,
        selection_units=(7,),
        context1=context1,
        context2=context2,
    )
    component, inputs, tokens = build(config)
    assert isinstance(component, FinalMLP)
    ids = [name for name in (*context1, *context2) if name.startswith(("c", "s"))]
    assert [t.feature for t in FinalMLP.extra_tables(config, small_schema(2, 1, 2).features)] == ids
    looked_up = dict(zip(ids, inputs.extra.split(4, dim=1), strict=True)) if ids else {}
    streams = []
    for gate, context, layers in (
        (component.gate1, context1, component.mlp1),
        (component.gate2, context2, component.mlp2),
    ):
        assert gate is not None
        dense = [name for name in context if name.startswith("x")]
        parts = [looked_up[name] for name in context if name in looked_up]
        for i, name in enumerate(dense):
            assert gate.dense is not None
            parts.append(inputs.dense[:, int(name[1]), None] * gate.dense[i])
        x = torch.cat(parts, dim=1) if context else gate.vector.expand(5, -1)  # type: ignore[union-attr]
        first, last = gate.mlp[0], gate.mlp[-1]
        hidden = (x @ first.weight.T + first.bias).relu()
        weights = 2 * (hidden @ last.weight.T + last.bias).sigmoid()
        streams.append(by_hand(layers, tokens.flatten(1) * weights))
    output = component(inputs)
    torch.testing.assert_close(output.embedding, torch.cat(streams, dim=1))
    x, y = streams
    head = component.fusion
    expected = affine(head.x, x) + affine(head.y, y)
    for h in range(3):
        expected = expected + torch.einsum(
            "bi,ij,bj->b", x[:, h : h + 1], head.weight[h], y[:, 2 * h : 2 * h + 2]
        )
    torch.testing.assert_close(output.logit, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, "must divide"),
        ({"context1": ("c0",), "context2": ("c0",)}, "context of one stream only"),
    ],
)
def test_finalmlp_settings_that_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FinalMLPConfig(**settings)


def test_finalmlp_names_a_context_that_is_no_feature() -> None:
    with pytest.raises(ValueError, match="'c9' is no feature; there are c0"):
        small_shape(FinalMLPConfig(**MLP, hidden_units2=(3,), context1=("c9",)))


@pytest.mark.parametrize("structure", ["parallel", "serial"])
def test_masknet(structure: str) -> None:
    config = MaskNetConfig(**MLP, structure=structure, num_blocks=2, block_dim=5, reduction_ratio=1.5)  # type: ignore[arg-type]
    component, inputs, tokens = build(config)
    assert isinstance(component, MaskNet)
    embedded = tokens.flatten(1)
    normed = torch.cat([norm(tokens[:, i]) for i, norm in enumerate(component.norms)], dim=1)

    def block(i: int, hidden: Tensor) -> Tensor:
        layer = component.blocks[i]
        first, _, second = layer.mask
        mask = (embedded @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias
        linear, norm = layer.hidden[0], layer.hidden[1]
        return norm((mask * hidden) @ linear.weight.T).relu()

    if structure == "serial":
        hidden = block(1, block(0, normed))
    else:
        assert component.mlp is not None
        hidden = by_hand(component.mlp, torch.cat([block(i, normed) for i in range(2)], dim=1))
    torch.testing.assert_close(component(inputs).embedding, hidden)
    torch.testing.assert_close(component(inputs).logit, affine(component.logit, hidden))


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2), (1, 3)])
def test_wukong_layers(sizes: tuple[int, int]) -> None:
    num_fmb, num_lcb = sizes
    config = WukongConfig(
        **MLP,
        dense="field",
        num_layers=2,
        num_fmb_tokens=num_fmb,
        num_lcb_tokens=num_lcb,
        rank=2,
        fmb_hidden_units=(6,),
    )
    component, inputs, x = build(config)
    assert isinstance(component, Wukong)
    for layer in component.layers:
        rows = []
        for tokens in x:
            products = layer.fmb.norm((tokens @ tokens.T @ layer.fmb.projection).flatten())
            fmb = by_hand(layer.fmb.mlp, products).view(num_fmb, 4)
            lcb = layer.lcb.linear.weight @ tokens
            same = len(tokens) == num_fmb + num_lcb
            shortcut = tokens if same else layer.shortcut.linear.weight @ tokens
            assert same == isinstance(layer.shortcut, nn.Identity)
            rows.append(layer.norm(torch.cat([fmb, lcb]) + shortcut))
        x = torch.stack(rows)
    torch.testing.assert_close(component(inputs), component.readout(x))
