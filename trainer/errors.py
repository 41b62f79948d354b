"""The one exception that means "the user can fix this"."""

import re
import reprlib
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
        line = printable(
            " ".join(super().__str__().splitlines())
        )  # a name in it may hold a line break, or be long
        return line if len(line) <= 1500 else f"{line[:1000]} ... {line[-400:]}"


class DoesNotFit(UserError):
    """The planner finds no place for the tables; `cetnet plan` looks for remedies then."""


def validation_message(error: "ValidationError") -> str:
    """First problem of a pydantic error, as one line: the key, what is wrong and, for a typo, what exists."""
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"])) or "the file"
    message = problem["msg"].removeprefix("Value error, ").replace("\n", "; ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key; see `cetnet config` for all keys"
    elif problem["type"] == "missing":
        message = "is missing"
    elif not isinstance(problem["input"], dict):
        message += f" (got {reprlib.repr(problem['input'])})"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}: {message}{more}"
