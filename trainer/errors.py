"""The one exception that means "the user can fix this"."""

import re
import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that any terminal and file takes: control characters, and a path's bytes that are no text, as escapes."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class UserError(ValueError):
    """A mistake in a configuration, in data or in a command.

    The message is one line that says what is wrong, where, and the remedy. The command line prints it
    and exits with code 2; nothing else in the program swallows it.
    """

    def __str__(self) -> str:
        # A name in it may hold a line break, or be long.
        line = printable(" ".join(super().__str__().splitlines()))
        return line if len(line) <= 1500 else f"{line[:1000]} ... {line[-400:]}"


class DoesNotFit(UserError):
    """The planner finds no place for the tables; `cetnet plan` looks for remedies then."""


def validation_message(error: "ValidationError", content: object = None) -> str:
    """First problem of a pydantic error, as one line: the key, what is wrong and, for a typo, what exists.

    `content` is what was validated, in which the key is looked up to be named as it is written there.
    """
    problems = error.errors()
    # A list all of whose values are wrong is too short as well.
    problems = [p for p in problems if p["type"] != "too_short" or not p["input"]] or problems
    problem = problems[0]
    kind, message = problem["type"], problem["msg"].removeprefix("Value error, ").replace("\n", "; ")
    context = problem.get("ctx", {})
    location = list(problem["loc"])
    if kind == "unknown_key":
        location.append(context["key"])
        message = f"unknown key; {context['help']}"
    elif kind == "missing":
        message = "is missing"
    elif kind == "union_tag_invalid":
        key = context["discriminator"].strip("'")
        message = f"{key} {context['tag']!r} is none of {context['expected_tags']}"
    elif kind in ("model_type", "dict_type"):
        message = f"a mapping of keys to values is expected (got {reprlib.repr(problem['input'])})"
    elif kind == "path_type":
        message = f"a path is expected (got {reprlib.repr(problem['input'])})"
    elif not isinstance(problem["input"], dict) and repr(problem["input"]) not in message:
        message += f" (got {reprlib.repr(problem['input'])})"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    key = _key(location, content, kind in ("missing", "unknown_key"))
    return f"{key}{': ' * bool(key)}{message}{more}"


def _key(location: Sequence[str | int], content: object, absent: bool) -> str:
    """Where a value stands in content, such as `features[2].kind (of item_id)`.

    Parts that aren't in it are pydantic's own, but the last if it is what is `absent`.
    """
    key, name, unknown = "", "", content is None
    for position, part in enumerate(location, 1):
        if isinstance(part, int):
            key += f"[{part}]"
            content = content[part] if isinstance(content, list) and part < len(content) else None
            named = content.get("name") if isinstance(content, dict) else None
            name = f" (of {named})" if isinstance(named, str) and location[position:] != ["name"] else ""
            continue
        held = isinstance(content, dict) and part in content
        if unknown or held or (absent and position == len(location)):
            key += f".{part}"
            content = content[part] if isinstance(content, dict) and held else None
    return key.removeprefix(".") + name
