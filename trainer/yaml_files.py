"""YAML files of a person's hand: read into a checked model, or one line that says what is wrong."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cetnet.trainer.errors import UserError, validation_message
from cetnet.trainer.strict_yaml import read_strict_yaml

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; raises UserError otherwise."""
    try:
        content = read_strict_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of keys to values is expected at the top")
    return content


def read_model(path: Path, model: type[Model]) -> Model:
    """What a YAML file describes; raises UserError that names the file, the key and what is wrong with it."""
    return checked(read_yaml(path), model, path)


def checked(content: Any, model: type[Model], source: object, context: dict[str, Any] | None = None) -> Model:
    """A model of content from somewhere, which the UserError names that says what is wrong with it.

    `context` is what the model's validators are told.
    """
    try:
        return model.model_validate(content, context=context)
    except ValidationError as error:
        raise UserError(f"{source}: {validation_message(error, model)}") from error


def save_yaml(path: Path, content: BaseModel) -> None:
    """Write a model as YAML, keys in the order of their definition."""
    path.write_text(
        yaml.safe_dump(content.model_dump(mode="json", exclude_none=True), sort_keys=False), encoding="utf-8"
    )
