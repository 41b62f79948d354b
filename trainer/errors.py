"""The one exception that means "the user can fix this"."""

import reprlib
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class UserError(ValueError):
    """A mistake in a configuration, in data or in a command.

    The message is one line that says what is wrong, where, and the remedy. The command line prints it
    and exits with code 2; nothing else in the program swallows it.
    """

    def __str__(self) -> str:
        line = " ".join(super().__str__().splitlines())  # a name in it may hold a line break, or be very long
        return line if len(line) <= 1500 else f"{line[:1000]} ... {line[-400:]}"


class DoesNotFit(UserError):
    """The planner finds no place for the tables; `cetnet plan` looks for remedies then."""


def validation_message(error: "ValidationError", model: "type[BaseModel] | None" = None) -> str:
    """First problem of a pydantic error, as one line: the key, what is wrong and, for a typo, what exists.

    `model` is what was to be made.
    """
    # A typo before what is missing because of it.
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    key = ".".join(map(str, problem["loc"])) or "the file"
    message = problem["msg"].removeprefix("Value error, ").replace("\n", "; ")
    if problem["type"] == "extra_forbidden":
        known = _keys(model, problem["loc"][:-1])
        close = get_close_matches(str(problem["loc"][-1]), known, 1)
        message = "unknown key; " + (f"did you mean {close[0]}? " if close else "")
        message += f"keys here: {', '.join(known)}" if known else "see `cetnet config` for all keys"
    elif problem["type"] == "missing":
        message = "is missing"
    elif not isinstance(problem["input"], dict):
        message += f" (got {reprlib.repr(problem['input'])})"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}: {message}{more}"


def _keys(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """The keys that a model has at a place in it; none if they depend on what is written there."""
    for part in place:
        # A part that is no field is the place in a list, or a key of a mapping.
        if field := _fields(model).get(str(part)):
            model = _model_in(field.annotation)
    return list(_fields(model))


def _fields(model: Any) -> dict[str, Any]:
    return {field.alias or name: field for name, field in getattr(model, "model_fields", {}).items()}


def _model_in(annotation: Any) -> Any:
    """The pydantic model that an annotation such as `tuple[Feature, ...] | None` is of; None if there is none."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
