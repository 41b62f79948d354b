"""YAML files of a person's hand: read into a checked model, or one line that says what is wrong."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cetnet.trainer.byte_order_marks import marked_encoding
from cetnet.trainer.errors import UserError, validation_message
from cetnet.trainer.files import check_ends
from cetnet.trainer.strict_yaml import read_strict_yaml

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, in UTF-8 or as its byte order mark says; raises UserError otherwise."""
    check_ends(path)
    try:
        content = read_strict_yaml(decoded(path.read_bytes()))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {yaml_problem(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of keys to values is expected at the top")
    return content


def decoded(content: bytes) -> str:
    """The text of a file in UTF-8, or as its byte order mark says; ValueError names the line of what is neither."""
    encoding = marked_encoding(content) or "utf-8"
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise ValueError(
            f"line {line}: byte 0x{byte:02x} is not {encoding.upper()}; save the file in UTF-8"
        ) from None


def yaml_problem(error: Exception) -> str:
    """What PyYAML says, on one line."""
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())


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
        raise UserError(f"{source}: {validation_message(error, content)}") from error


def save_yaml(path: Path, content: BaseModel) -> None:
    """Write a model as YAML, keys in the order of their definition."""
    path.write_text(
        yaml.safe_dump(content.model_dump(mode="json", exclude_none=True), sort_keys=False), encoding="utf-8"
    )
