"""Names and columns that a schema may have."""

from typing import Any

import pytest
from pydantic import ValidationError

from cetnet.models.schema import Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.yaml_files import checked

ITEM = {"name": "item", "kind": "categorical"}
PRICE = {"name": "price", "kind": "dense"}


def refusal(model: Any, content: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        checked(content, model, "schema.yaml")
    return str(error.value)


@pytest.mark.parametrize("name", ["", "..", "a b", "a.b", "é", "1a", "a-b", "a\nb", "[red]", "😀", "x" * 101])
def test_a_features_name_is_refused_where_it_stands(name: str) -> None:
    for model in (Schema, RawSchema):
        content = {"label": "click", "tables": {"item": 5}, "features": [ITEM, {**PRICE, "name": name}]}
        message = refusal(model, content)
        assert message.startswith("schema.yaml: features[1].name: '"), message
        assert "can't be a feature's name, which" in message
        assert len(message) < 300


@pytest.mark.parametrize(
    "name", ["", " ", "..", "item/v1.2", "a\nb", "#group", "\x1b[31m", "x" * 101, "数" * 70]
)
def test_a_tables_name_is_refused_where_it_stands(name: str) -> None:
    content = {"label": "click", "tables": {name: 5}, "features": [{**ITEM, "table": name}]}
    message = refusal(Schema, content)
    assert message.startswith("schema.yaml: tables.")
    del content["tables"]
    message = refusal(RawSchema, content)
    assert message.startswith("schema.yaml: features[0].table (of item): '")
    assert "for a table's name" in message or "can't be a table's name" in message


@pytest.mark.parametrize(
    "name", ["a b", "é", "[red]", "😀", "item-id", "keys", "forward", "$x$", "x,y", "a|b", "_"]
)
def test_any_other_table_may_be_there(name: str) -> None:
    Schema.model_validate({"label": "click", "tables": {name: 5}, "features": [{**ITEM, "table": name}]})


ROLES = ("label", "weight", "true_probability", "group", "timestamp")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("other", [*ROLES, "feature"])
def test_a_column_means_one_thing(role: str, other: str) -> None:
    """All pairs: only a group and a timestamp may be a feature, or each other."""
    if role == other:
        return
    content = {"label": "click", "tables": {"item": 5}, "features": [ITEM, PRICE]} | {role: "price"}
    content |= {"features": [ITEM, PRICE]} if other == "feature" else {other: "price", "features": [ITEM]}
    for model in (Schema, RawSchema):
        if model is RawSchema and "true_probability" in (role, other):
            continue
        if {role, other} <= {"group", "timestamp", "feature"}:
            checked(content, model, "schema.yaml")
        else:
            message = refusal(model, content)
            assert "column 'price' is both" in message
            assert role in message


def test_a_table_called_as_one_that_components_make_is_refused() -> None:
    tables = {"item": 5, "item__extra": 5}
    features = [ITEM, {**ITEM, "name": "other", "table": "item__extra"}]
    with pytest.raises(ValidationError, match=r"table 'item__extra' has the name .* rename it"):
        Schema.model_validate({"label": "click", "tables": tables, "features": features})


def prepared(*features: str, **roles: str) -> Schema:
    content = {"label": "click", "features": [{**ITEM, "name": name} for name in features], **roles}
    return RawSchema.model_validate(content).draft


def test_columns_that_are_read_twice_get_free_names() -> None:
    assert prepared("a", group="u", timestamp="t").group == "u"
    assert prepared("u", group="u").group == "u_group"
    assert prepared("u", "u_group", "u_group_2", group="u").group == "u_group_3"
    assert prepared("u", group="u", timestamp="u_group").group == "u_group_2"
    assert prepared("u", group="u", weight="u_group").group == "u_group_2"
    both = prepared("u", group="u", timestamp="u")
    assert (both.group, both.timestamp) == ("u_group", "u_timestamp")
    both = prepared("a", group="t", timestamp="t")
    assert (both.group, both.timestamp) == ("t_group", "t")
    both = prepared("t", "t_timestamp", group="t_timestamp", timestamp="t")
    assert (both.group, both.timestamp) == ("t_timestamp_group", "t_timestamp_2")
