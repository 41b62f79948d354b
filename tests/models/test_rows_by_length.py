"""Rows of like lengths are computed apart, and nothing else changes."""

from typing import Any

import pytest
import torch

from cetnet.models.cetnet import CETNet, Member
from cetnet.models.component import Inputs
from cetnet.models.config import CETNetConfig
from cetnet.models.layers.sequences import rows_by_length
from cetnet.models.schema import Feature, Schema
from tests.models.inputs import random_inputs

SCHEMA = Schema(
    label="label",
    tables={"item": 10, "tag": 5},
    features=(
        Feature(name="item", kind="categorical"),
        Feature(name="items", kind="sequence", table="item", max_length=150, behavior="seen"),
        Feature(name="tags", kind="sequence", table="tag", max_length=150, behavior="read"),
        Feature(name="price", kind="dense"),
    ),
)


def member(**settings: Any) -> Member:
    torch.manual_seed(3)
    interformer = {"kind": "interformer", "embedding_dim": 8, "num_heads": 2, "num_layers": 2, **settings}
    model = CETNet(SCHEMA, CETNetConfig.model_validate({"components": {"interformer": interformer}}))
    (only,) = model.double().towers.values()
    assert isinstance(only, Member)
    return only


def leaves(inputs: Inputs) -> Inputs:
    floating = {"tokens": inputs.tokens, "sequences": inputs.sequences}
    return inputs._replace(**{name: value.clone().requires_grad_() for name, value in floating.items()})


def test_groups_are_of_like_lengths() -> None:
    lengths = torch.tensor([[0, 3], [32, 1], [33, 2], [64, 64], [1000, 0], [900, 999], [0, 0]])
    groups = [(rows.tolist(), longest) for rows, longest in rows_by_length(lengths)]
    assert groups == [([0, 1, 6], 32), ([2, 3], 64), ([4, 5], 1000)]
    assert [longest for _, longest in rows_by_length(torch.zeros(2, 1, dtype=torch.int64))] == [1]


@pytest.mark.parametrize("join", ["aligned", "separate"])
def test_outputs_and_gradients_are_those_of_all_rows_at_once(join: str) -> None:
    ours = member(sequence_join=join)
    inputs = random_inputs(ours.assembly.shape, 24, dtype=torch.float64)
    assert len(rows_by_length(inputs.lengths)) > 2
    together, apart = leaves(inputs), leaves(inputs)
    gradients = []
    for output, given in ((ours.component(together), together), (ours(apart), apart)):
        ours.zero_grad()
        (output.embedding.square().sum() + output.logit.sin().sum()).backward()
        parameters = [p.grad.clone() for p in ours.component.parameters() if p.grad is not None]
        gradients.append(
            [output.embedding, output.logit, given.tokens.grad, given.sequences.grad, *parameters]
        )
    assert len(gradients[0]) > 20
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_batch_normalisation_sees_all_rows() -> None:
    assert member().component.rows_apart
    assert not member(batch_norm=True).component.rows_apart
    assert not member(activation="dice").component.rows_apart
