"""The served model gives what the trained one gives, exported or not, whatever numbers come in."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cetnet.models.batch import Batch
from cetnet.models.cetnet import CETNet
from cetnet.models.config import CETNetConfig
from cetnet.models.registry import COMPONENTS
from cetnet.models.schema import Feature, Schema
from cetnet.models.served import NOTHING, Served, batch_of, inputs_of
from cetnet.trainer.errors import UserError
from cetnet.trainer.export.model import export_program
from tests.models.test_components import CONFIGS

SCHEMA = Schema(
    label="label",
    tables={"user": 7, "item": 9, "word": 11, "given": 5, "other": 6},
    pretrained={"given": 3, "other": 5},
    features=(
        Feature(name="tags", kind="multi_valued", table="word"),  # not in the order of kinds
        Feature(name="history", kind="sequence", table="item", max_length=5),
        Feature(name="user", kind="categorical"),
        Feature(name="price", kind="dense"),
        Feature(name="titles", kind="sequence", table="given", max_length=5),
        Feature(name="item", kind="categorical"),
        Feature(name="title", kind="categorical", table="given"),
        Feature(name="searches", kind="sequence", table="word", max_length=3, behavior="searches"),
        Feature(name="picture", kind="categorical", table="other"),
        Feature(name="titles_of_user", kind="multi_valued", table="given"),
        Feature(name="age", kind="dense"),
    ),
)
IDS_ALONE = Schema(
    label="label",
    tables={"user": 7},
    features=(Feature(name="friends", kind="sequence", table="user", max_length=1),),
)
DHEN = {"kind": "dhen", "embedding_dim": 8, "hidden_units": [8], "dot_hidden_units": [4]}
INTERFORMER = {**DHEN, "kind": "interformer", "num_heads": 2, "num_layers": 1}
PAIR = {"interformer": INTERFORMER, "dhen": DHEN}
FINALMLP = {
    "kind": "finalmlp",
    "embedding_dim": 4,
    "hidden_units": [8],
    "hidden_units2": [4],
    "selection_units": [4],
    "context1": ["user", "tags"],
    "context2": ["price", "searches"],
}
IN_TURN = {**FINALMLP, "context1": ["item"], "context2": ["user"]}  # not in the schema's order
EXPORTED = [
    *sorted(COMPONENTS),
    "dcnv2_mixture",
    "dhen_all",
    "interformer_separate",
]


def build(schema: Schema = SCHEMA, dense: tuple[str, ...] = (), **of_model: Any) -> CETNet:
    torch.manual_seed(0)
    config = CETNetConfig.model_validate(of_model)
    model = CETNet(schema, config, is_dense=lambda table: table.split("__")[1] in dense).eval()
    for table in model.tables.parameters():
        nn.init.normal_(table, std=0.5)
    return model


def batch(schema: Schema, rows: int, seed: int = 0, longest: int = 5) -> Batch:
    random = torch.Generator().manual_seed(seed)
    values, lengths = [], []
    for feature in schema.id_features:
        most = min(longest, feature.max_length or 3)
        lengths.append(
            torch.ones(rows, dtype=torch.int64)
            if feature.kind == "categorical"
            else torch.randint(0, most + 1, (rows,), generator=random)
        )
        table = schema.tables[str(feature.table)]
        values.append(torch.randint(0, table, (int(lengths[-1].sum()),), generator=random))
    sparse = KeyedJaggedTensor(
        [feature.name for feature in schema.id_features], torch.cat(values), lengths=torch.cat(lengths).int()
    )
    dense = torch.randn(rows, len(schema.dense_features), generator=random)
    return Batch(sparse, dense, torch.zeros(rows), torch.ones(rows), torch.arange(rows))


def cases(schema: Schema) -> list[Batch]:
    return [
        batch(schema, 9),
        batch(schema, 1, seed=1),
        batch(schema, 3, longest=0),
        batch(schema, 1, longest=0),
    ]


@torch.no_grad()
def trained(model: CETNet, each: Batch) -> Tensor:
    return model(each)[1].logits.sigmoid()


def assert_served(model: CETNet, schema: Schema, run: Any, expected: list[Tensor]) -> None:
    for each, of_each in zip(cases(schema), expected, strict=True):
        with torch.no_grad():
            found = run(**inputs_of(schema, each.sparse, each.dense))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, of_each, rtol=0, atol=1e-6)
        torch.testing.assert_close(trained(model, each), of_each, rtol=0, atol=1e-6)


ENSEMBLES: dict[str, dict[str, Any]] = {
    "own_tables": {
        "components": {
            **PAIR,
            "wide": {"kind": "wide_deep", "hidden_units": [4]},
            "two": FINALMLP,
            "in_turn": IN_TURN,
        }
    },
    "shared_tables": {"components": PAIR, "shared_tables": True},
    "dense_tables": {
        "components": {**PAIR, "fm": {"kind": "fm", "embedding_dim": 5}},
        "dense": ("user", "item", "word"),
    },
    "only_fused": {
        "components": PAIR,
        "component_weight": 0,
        "collaboration": {"kind": "none"},
        "fusion": {"mode": "mean"},
    },
    "alone": {"components": {"din": CONFIGS["din"].model_dump()}},
    **{
        mode: {"components": PAIR, "fusion": {"mode": mode, "hidden_units": [4]}}
        for mode in ("confidence_sum", "gate_concat", "gate_sum", "concat", "mean")
    },
    **{mode: {"components": PAIR, "fusion": {"mode": mode}} for mode in ("average", "confidence_average")},
}


@pytest.mark.parametrize("of_model", ENSEMBLES.values(), ids=ENSEMBLES)
def test_it_gives_what_the_trained_model_gives(of_model: dict[str, Any]) -> None:
    model = build(**of_model)
    expected = [trained(model, each) for each in cases(SCHEMA)]
    served = Served(model, SCHEMA)
    assert served.outputs == model.outputs
    assert served.input_names == ("dense", "categorical", "multi_valued", "sequences")
    assert_served(model, SCHEMA, served, expected)


def test_every_component_exports() -> None:
    components = {name: CONFIGS[name].model_dump() for name in EXPORTED}
    schema = SCHEMA.model_copy(
        update={
            "features": (
                *SCHEMA.features,
                *(Feature(name=c, kind="categorical", table="user") for c in ("c0", "c1")),
            )
        }
    )
    model = build(schema, components=components, fusion={"mode": "concat"})
    expected = [trained(model, each) for each in cases(schema)]
    program = export_program(Served(model, schema), schema)
    assert_served(model, schema, program.module(), expected)


@pytest.mark.parametrize(
    "more", [{}, {"fusion": {"mode": "average"}}, {"fusion": {"mode": "confidence_average"}}]
)
def test_a_schema_of_one_short_list_exports(more: dict[str, Any]) -> None:
    copies = 2 if more else 1
    model = build(IDS_ALONE, components={"dnn": {**CONFIGS["dnn"].model_dump(), "copies": copies}}, **more)
    expected = [trained(model, each) for each in cases(IDS_ALONE)]
    program = export_program(Served(model, IDS_ALONE), IDS_ALONE)
    assert_served(model, IDS_ALONE, program.module(), expected)


def test_memory_holds_the_tables_once() -> None:
    model = build(components=PAIR)
    tables = {name: table.clone() for name, table in model.tables.state_dict().items()}
    served = Served(model, SCHEMA)
    for name, table in model.tables.state_dict().items():
        assert torch.equal(table, tables[name])
        assert any(
            table.untyped_storage().data_ptr() == block.untyped_storage().data_ptr()
            for block in served.groups.state_dict().values()
        )
    inputs = inputs_of(SCHEMA, batch(SCHEMA, 2).sparse, batch(SCHEMA, 2).dense)
    before = served(**inputs)
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    assert not torch.equal(before, served(**inputs))


SERVED = Served(build(components={"din": CONFIGS["din"].model_dump()}), SCHEMA)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.data())
def test_ids_that_a_table_lacks_are_row_0_whatever_they_are(seed: int, data: st.DataObject) -> None:
    each = batch(SCHEMA, 3, seed=seed)
    inputs = inputs_of(SCHEMA, each.sparse, each.dense)
    wild, plain = dict(inputs), dict(inputs)
    for name in ("categorical", "multi_valued", "sequences"):
        grid = inputs[name]
        foreign = st.one_of(st.integers(-(2**63), -2), st.integers(11, 2**63 - 1))
        if name == "categorical":
            foreign |= st.just(NOTHING)
        ids = torch.tensor(
            data.draw(st.lists(foreign, min_size=grid.numel(), max_size=grid.numel()))
        ).view_as(grid)
        there = grid != NOTHING
        wild[name], plain[name] = torch.where(there, ids, grid), torch.where(there, 0, grid)
    assert torch.equal(SERVED(**wild), SERVED(**plain))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_inputs_of_training_and_of_serving_are_one(seed: int, rows: int) -> None:
    each = batch(SCHEMA, rows, seed=seed)
    sparse, dense = batch_of(SCHEMA, inputs_of(SCHEMA, each.sparse, each.dense))
    assert sparse.keys() == each.sparse.keys()
    assert torch.equal(sparse.values(), each.sparse.values())
    assert torch.equal(sparse.lengths(), each.sparse.lengths())
    assert torch.equal(dense, each.dense)


def test_tables_with_managed_collision_are_refused() -> None:
    schema = SCHEMA.model_copy(update={"managed_collision": ("user",)})
    with pytest.raises(ValueError, match=r"table 'user' has managed collision.* on a GPU only"):
        Served(build(components=PAIR), schema)


def test_a_component_that_cannot_be_exported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(components={"dhen": DHEN})
    served = Served(model, SCHEMA)

    def forward(inputs: Any) -> Any:
        return original(inputs if inputs.dense.sum() > 0 else inputs._replace(dense=-inputs.dense))

    original = model.towers["dhen"].component.forward
    monkeypatch.setattr(model.towers["dhen"].component, "forward", forward)
    with pytest.raises(
        UserError, match=r"component 'dhen' \(DHEN\) can't be exported: Could not .*test_served.py, line"
    ):
        export_program(served, SCHEMA)
