"""All keys of an experiment file, from the configuration classes themselves."""

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich import box
from rich.table import Table

from cetnet.models.registry import COMPONENTS, component_class, component_summary


def reference_table(root: type[BaseModel]) -> list[Table]:
    """The keys of an experiment file, and the kinds of component it may name."""
    kinds = Table("kind", "what it is", title="Components", title_justify="left", box=box.SIMPLE_HEAD)
    for kind in COMPONENTS:
        kinds.add_row(kind, component_summary(kind))
    return [_table("Keys of an experiment file", root), kinds]


def component_table(kind: str) -> Table:
    """The keys of a component, by its kind; raises ValueError for an unknown one."""
    return _table(f"model.components.NAME with kind: {kind}", component_class(kind).Config)


def _table(title: str, model: type[BaseModel]) -> Table:
    table = Table("key", "default", "meaning", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for key, default, meaning in _fields(model):
        table.add_row(key, default, meaning)
    return table


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        elif field.discriminator:
            for choice in typing.get_args(field.annotation):
                kind = typing.get_args(choice.model_fields["kind"].annotation)[0]
                default = "the default" if isinstance(field.default, choice) else ""
                yield f"{prefix}{name}.kind: {kind}", default, (choice.__doc__ or "").partition("\n")[0]
                for key, value, meaning in _fields(choice, f"{prefix}{name}."):
                    if not key.endswith(".kind"):
                        yield f"  {key}", value, meaning
        else:
            yield f"{prefix}{name}", _show(field.default), field.description or ""
            for section in typing.get_args(field.annotation):
                if isinstance(section, type) and issubclass(section, BaseModel):
                    yield from _fields(section, f"{prefix}{name}.")


def _show(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    return "none" if default is None else str(default)
