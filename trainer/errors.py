"""The one exception that means "the user can mend this"."""


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
