"""What the dense part of a model computes for a row, against layers counted by hand."""

import pytest
import torch

from cetnet.models.cetnet import CETNet
from cetnet.models.config import CETNetConfig
from cetnet.models.registry import COMPONENTS
from cetnet.trainer.flops import flops_per_row
from tests.models.inputs import small_schema


def model(components: dict[str, dict], fusion: dict | None = None, device: str = "cpu") -> CETNet:
    content = {"components": components} | ({"fusion": fusion} if fusion else {})
    return CETNet(small_schema(), CETNetConfig.model_validate(content), table_device="meta", device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_and_fusion_by_hand(device: str) -> None:
    dnn = {"kind": "dnn", "embedding_dim": 4, "hidden_units": [8]}
    # Of categories, pooled histories and dense features a vector each, which are a product without a matrix.
    one = (3 + 2 + 3) * 4 * 8 + 8
    flops, uncounted = flops_per_row(model({"a": dnn}, device=device), small_schema())
    assert (flops, uncounted) == (2 * one, ())
    fused = model({"a": dnn, "b": dnn}, {"mode": "concat", "hidden_units": [6]}, device)
    assert flops_per_row(fused, small_schema()) == (2 * (2 * one + 2 * 8 * 6 + 6), ())


@pytest.mark.parametrize("kind", COMPONENTS)
def test_every_component_is_counted_and_left_as_it_is(kind: str) -> None:
    units = {} if kind == "fm" else {"hidden_units": [8]}
    one = model({"a": {"kind": kind, "embedding_dim": 8, **units}})
    before = {name: value.clone() for name, value in one.state_dict().items() if not value.is_meta}
    drawn = torch.get_rng_state()
    flops, uncounted = flops_per_row(one, small_schema())
    assert not uncounted
    assert flops > 0 or kind == "fm"
    assert torch.equal(torch.get_rng_state(), drawn)
    assert one.training
    after = one.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_recurrent_cells_are_counted_position_by_position() -> None:
    """A step more of two histories: a GRU's and an AUGRU's three gates of input and state, and the attention."""
    schema = small_schema()
    features = [
        feature.model_copy(update={"max_length": 6}) if feature.kind == "sequence" else feature
        for feature in schema.features
    ]
    longer = schema.model_copy(update={"features": tuple(features)})
    dien = {"kind": "dien", "embedding_dim": 8, "hidden_units": [8], "attention": "bilinear"}
    counted = []
    for each in (schema, longer):
        config = CETNetConfig.model_validate({"components": {"a": dien}})
        counted.append(flops_per_row(CETNet(each, config, table_device="meta"), each)[0])
    gates = 2 * 6 * 8 * 8
    attention = 8 * 8 + 8  # which PyTorch doesn't count all of
    assert counted[1] - counted[0] == pytest.approx(2 * 2 * (gates + attention), rel=0.1)
