"""All keys of an experiment file, from the configuration classes themselves."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich import box
from rich.table import Table

from models.registry import COMPONENTS, component_class


def reference_table(root: type[BaseModel]) -> list[Table]:
    """One table for the experiment file and one for each kind of component."""
    tables = [_table("Keys of an experiment file", root)]
    tables += [
        _table(f"model.components.NAME with kind: {kind}", component_class(kind).Config)
        for kind in COMPONENTS
    ]
    return tables


def _table(title: str, model: type[BaseModel]) -> Table:
    table = Table("key", "default", "meaning", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for key, default, meaning in _fields(model):
        table.add_row(key, default, meaning)
    return table


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _show(field.default), field.description or ""


def _show(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    return "none" if default is None else str(default)
