"""Ensembles as a whole: which tables are read by whom, what is trained, what the configuration expands to."""

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cetnet.models.cetnet import CETNet
from cetnet.models.component import Output
from cetnet.models.config import CETNetConfig
from cetnet.models.registry import COMPONENTS
from cetnet.models.schema import Feature, Schema

SCHEMA = Schema(
    label="label",
    tables={"user": 7, "item": 9},
    features=(
        Feature(name="user", kind="categorical"),
        Feature(name="item", kind="categorical"),
        Feature(name="tags", kind="multi_valued", table="user"),
        Feature(name="history", kind="sequence", table="item", max_length=4),
        Feature(name="price", kind="dense"),
    ),
)
IDS = {
    "user": [[1], [2], [1]],
    "item": [[3], [4], [5]],
    "tags": [[1, 6], [], [2]],
    "history": [[3, 8], [], [5, 4, 3]],
}
DHEN = {"kind": "dhen", "embedding_dim": 8, "hidden_units": [8], "dot_hidden_units": [4]}
INTERFORMER = {**DHEN, "kind": "interformer", "num_heads": 2, "num_layers": 1}


class Batch(NamedTuple):
    sparse: KeyedJaggedTensor
    dense: Tensor
    label: Tensor
    weight: Tensor
    row: Tensor
    teachers: Tensor | None = None
    peers: Tensor | None = None


def batch() -> Batch:
    values = [i for lists in IDS.values() for ids in lists for i in ids]
    lengths = [len(ids) for lists in IDS.values() for ids in lists]
    return Batch(
        KeyedJaggedTensor(list(IDS), torch.tensor(values), lengths=torch.tensor(lengths)),
        torch.tensor([[0.5], [-1.0], [2.0]]),
        torch.tensor([1.0, 0.0, 0.0]),
        torch.ones(3),
        torch.arange(3),
    )


def build(schema: Schema = SCHEMA, **settings: Any) -> CETNet:
    torch.manual_seed(0)
    return CETNet(schema, CETNetConfig.model_validate(settings)).eval()


def test_copies_are_components_with_tables_of_their_own() -> None:
    model = build(components={"net": {**DHEN, "copies": 3}})
    assert model.outputs == ["fused", "net_1", "net_2", "net_3"]
    assert set(model.table_std) == {f"net_{i}__{t}" for i in (1, 2, 3) for t in ("user", "item")}


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"net": {**DHEN, "copies": 0}}, "copies must be a number from 1 to 1000, not 0"),
        ({"net": {**DHEN, "copies": 2}, "net_1": DHEN}, "'net_1' is there twice"),
        ({"shared": DHEN}, "'shared' can't be a component's name, since"),
        *[
            ({name: DHEN}, "can't be a component's name, which has letters")
            for name in ("", "a b", "a.b", "a__b", "a_", "1a", "a/b", "..", "a\nb", "[red]", "😀", "a" * 101)
        ],
    ],
)
def test_component_names_that_are_refused(components: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CETNetConfig.model_validate({"components": components})


ATTRIBUTES = ["keys", "values", "pop", "clear", "forward", "training", "type", "T_destination", "on_inputs"]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_component_called_as_an_attribute_of_modules_is_refused_in_words(name: str) -> None:
    with pytest.raises(ValueError, match=f"^'{name}' can't be a component's name, since .* rename it"):
        build(components={name: DHEN, "other": DHEN})


@pytest.mark.parametrize(
    "name", ["weight_of", "self", "é", "数", "_a", "a_1", "kind", "fused_x", "ne", "window"]
)
def test_any_other_name_does(name: str) -> None:
    assert build(components={name: DHEN, "other": DHEN}).outputs == ["fused", name, "other"]


def test_shared_tables_are_one_set_that_every_component_reads_in_its_own_way() -> None:
    components = {"interformer": INTERFORMER, "dhen": DHEN}
    own, shared = build(components=components), build(components=components, shared_tables=True)
    assert set(shared.table_std) == {"shared__user", "shared__item"}
    weights = {name.split(".")[-2]: p for name, p in shared.named_parameters() if name.startswith("tables.")}
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if name.startswith("tables."):
                parameter.copy_(
                    weights[
                        name.split(".")[-2].replace("interformer__", "shared__").replace("dhen__", "shared__")
                    ]
                )
            else:
                parameter.copy_(shared.get_parameter(name))
    loss, predictions = shared(batch())
    expected_loss, expected = own(batch())
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(predictions.logits, expected.logits)
    loss.backward()
    expected_loss.backward()
    gradients = {
        name.split(".")[-2]: p.grad for name, p in own.named_parameters() if name.startswith("tables.")
    }
    for table, weight in weights.items():
        total = sum(gradients[f"{c}__{table.removeprefix('shared__')}"] for c in components)  # type: ignore[misc]
        torch.testing.assert_close(weight.grad, total)


def test_shared_tables_need_one_size() -> None:
    components = {"a": DHEN, "b": {**DHEN, "embedding_dim": 4}}
    with pytest.raises(ValidationError, match="one embedding_dim"):
        CETNetConfig.model_validate({"components": components, "shared_tables": True})


@pytest.mark.parametrize("mode", ["concat", "mean", "gate_sum"])
def test_without_component_losses_only_the_fused_prediction_learns(mode: str) -> None:
    model = build(
        components={"a": DHEN, "b": INTERFORMER},
        component_weight=0,
        collaboration={"kind": "none"},
        fusion={"mode": mode},
    )
    assert model.outputs == ["fused"]
    loss, predictions = model(batch())
    assert predictions.logits.shape == (1, 3)
    torch.testing.assert_close(
        loss, nn.functional.binary_cross_entropy_with_logits(predictions.logits[0], batch().label)
    )
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() != name.endswith(("readout.logit.weight", "readout.logit.bias")), name


def test_the_loss_by_hand() -> None:
    torch.manual_seed(0)
    model = build(
        components=dict.fromkeys("abc", DHEN),
        component_weight=0.7,
        collaboration={"kind": "symmetric_kl", "weight": 0.3},
    )
    logits, embeddings = torch.randn(3, 5), torch.randn(3, 5, 8)
    auxiliary = torch.rand(5)
    outputs = [
        Output(e, z, auxiliary if i == 1 else None)
        for i, (e, z) in enumerate(zip(embeddings, logits, strict=True))
    ]
    label, weight = torch.tensor([1.0, 0, 1, 0, 0]), torch.tensor([1.0, 0, 2, 3, 0.5])
    row = torch.arange(5)
    loss, predictions = model.objective(outputs, label, weight, row)
    assert model.objective.fusion is not None
    fused = model.objective.fusion(list(embeddings), logits.T)
    expected = 0.0
    for i in range(5):
        p = [torch.sigmoid(z).item() for z in (fused[i], *logits[:, i])]
        bce = [-math.log(q if label[i] else 1 - q) for q in p]
        kl = 0.0
        for q, r in itertools.permutations(p[1:], 2):
            kl += q * math.log(q / r) + (1 - q) * math.log((1 - q) / (1 - r))
        each = bce[0] + 0.7 * sum(bce[1:]) + 0.3 * kl / 3 + auxiliary[i].item()
        expected += weight[i].item() * each / 5
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(predictions.logits, torch.stack([fused, *logits]))
    assert model.outputs == ["fused", "a", "b", "c"]
    for found, given in ((predictions.label, label), (predictions.weight, weight), (predictions.row, row)):
        assert torch.equal(found, given)


def test_bf16_is_for_the_components_only() -> None:
    settings = {"components": {"a": DHEN, "b": INTERFORMER}}
    exact = build(**settings)
    torch.manual_seed(0)
    model = CETNet(SCHEMA, CETNetConfig.model_validate(settings), bf16=True).eval()
    model.load_state_dict(exact.state_dict())
    dtypes = set()
    for module in model.towers.modules():
        if type(module) is nn.Linear:
            module.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    (loss, predictions), (exact_loss, expected) = model(batch()), exact(batch())
    assert dtypes == {torch.bfloat16}
    assert loss.dtype == predictions.logits.dtype == torch.float32
    torch.testing.assert_close(predictions.logits, expected.logits, atol=0.03, rtol=0.05)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not torch.equal(loss, exact_loss)


def test_averaged_models_learn_as_if_alone() -> None:
    model = build(
        components={"net": {**DHEN, "copies": 2}},
        fusion={"mode": "average"},
        collaboration={"kind": "none"},
    )
    _, predictions = model(batch())
    torch.testing.assert_close(predictions.logits[0], predictions.logits[1:].mean(0))
    model(batch())[0].backward()
    for name in ("net_1", "net_2"):
        alone = build(components={name: DHEN})
        alone.load_state_dict({key: model.state_dict()[key] for key in alone.state_dict()})
        alone(batch())[0].backward()
        for key, parameter in alone.named_parameters():
            torch.testing.assert_close(model.get_parameter(key).grad, parameter.grad)


def test_an_average_that_nothing_would_teach_is_refused() -> None:
    settings = {"components": {"a": DHEN, "b": DHEN}, "component_weight": 0}
    with pytest.raises(ValidationError, match="no loss by the label reaches a component"):
        CETNetConfig.model_validate({**settings, "fusion": {"mode": "average"}})
    CETNetConfig.model_validate({**settings, "fusion": {"mode": "average", "stop_gradient": False}})


def test_with_neither_fusion_nor_collaboration_components_learn_as_if_alone() -> None:
    components = {"a": DHEN, "b": INTERFORMER}
    model = build(components=components, collaboration={"weight": 0})
    nn.init.zeros_(model.objective.fusion.readout.weight)  # type: ignore[union-attr,arg-type]
    model(batch())[0].backward()
    for name, settings in components.items():
        alone = build(components={name: settings})
        alone.load_state_dict({key: model.state_dict()[key] for key in alone.state_dict()})
        alone(batch())[0].backward()
        for key, parameter in alone.named_parameters():
            torch.testing.assert_close(model.get_parameter(key).grad, parameter.grad)


@pytest.mark.parametrize("component", [DHEN, INTERFORMER])
def test_pretrained_vectors_are_projected_after_pooling_and_never_trained(component: dict[str, Any]) -> None:
    features = [
        f.model_copy(update={"table": "vector"} if f.name in ("item", "history") else {})
        for f in SCHEMA.features
    ]
    schema = Schema(
        label="label", tables={"user": 7, "vector": 9}, pretrained={"vector": 3}, features=tuple(features)
    )
    model = build(schema, components={"net": component})
    table = next(p for n, p in model.named_parameters() if "pretrained__vector" in n)
    vectors = torch.randn(9, 3)
    table.data.copy_(vectors)
    seen = {}
    model.towers["net"].component.register_forward_hook(lambda _, args, __: seen.update(inputs=args[0]))
    loss, _ = model(batch())
    loss.backward()
    assert table.grad is None
    projections = model.towers["net"].assembly.projections
    assert set(projections) == {"item", "history"}
    torch.testing.assert_close(seen["inputs"].tokens[:, 1], vectors[[3, 4, 5]] @ projections["item"].weight.T)
    history = projections["history"].weight
    if component is INTERFORMER:
        torch.testing.assert_close(seen["inputs"].sequences[2, 0], vectors[[5, 4, 3]] @ history.T)
    else:
        torch.testing.assert_close(seen["inputs"].tokens[2, 3], vectors[[5, 4, 3]].mean(0) @ history.T)
        assert not seen["inputs"].tokens[1, 3].any()


def test_features_may_be_called_as_attributes_of_modules() -> None:
    names = {"user": "forward", "item": "keys", "tags": "type", "history": "pop", "price": "training"}
    losses = []
    for renamed in ({name: name for name in names}, names):
        features = [
            f.model_copy(update={"name": renamed[f.name], "table": f.table and "vector"})
            for f in SCHEMA.features
        ]
        schema = Schema(
            label="label", tables={"vector": 9}, pretrained={"vector": 3}, features=tuple(features)
        )
        model = build(schema, components={"net": INTERFORMER})
        for parameter in model.parameters():
            parameter.data.fill_(0.01)
        ids = batch().sparse
        sparse = KeyedJaggedTensor([renamed[key] for key in IDS], ids.values(), lengths=ids.lengths())
        losses.append(model(batch()._replace(sparse=sparse))[0])
    assert losses[0] == losses[1]


def test_histories_are_padded_to_the_longest_of_the_batch() -> None:
    model = build(components={"net": INTERFORMER})
    seen = {}
    model.towers["net"].component.register_forward_hook(lambda _, args, __: seen.update(inputs=args[0]))
    model(batch())
    assert seen["inputs"].sequences.shape == (3, 1, 3, 8)
    assert seen["inputs"].lengths.tolist() == [[2], [0], [3]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"component_weight": 0, "collaboration": {"kind": "none"}}, "leave untrained"),
        ({"fusion": {"head": "bilinear"}}, "halves a sum or mean"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CETNetConfig.model_validate({"components": {"a": DHEN, "b": DHEN}, **settings})


def test_a_sharded_table_of_odd_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embedding_dim 10.*multiple of 4.*dense_tables"):
        build(components={"net": {**DHEN, "embedding_dim": 10}})


@pytest.mark.parametrize("kind", COMPONENTS)
def test_untrained_predictions_lie_around_a_rate(kind: str) -> None:
    model = build(components={"one": {"kind": kind, "embedding_dim": 8, "copies": 2}})
    model.start_at(0.02)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.zeros_(parameter)
    probability = model(batch())[1].logits.sigmoid()
    assert probability.numpy() == pytest.approx(0.02, rel=1e-3)
