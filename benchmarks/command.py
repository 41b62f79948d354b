"""The command line of a measurement."""

import sys
from collections.abc import Callable

import typer

from cetnet.trainer.console import quieten
from cetnet.trainer.errors import UserError


def run_command(name: str, main: Callable[..., None], *failures: type[Exception]) -> None:
    """Run `main` with the arguments of the command line.

    A user's mistake is one line on stderr, after `name`, and exit code 2; one of `failures` the same, but 1.
    """
    quieten()
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(main)
    try:
        app()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except failures as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
