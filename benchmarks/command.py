"""The command line of a measurement."""

import sys
from collections.abc import Callable

import typer

from cetnet.trainer.console import quieten
from cetnet.trainer.failures import tell


def run_command(main: Callable[..., None]) -> None:
    """Run `main` with the arguments of the command line; what ends it is told, and its exit code, as by `cetnet`."""
    quieten()
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(main)
    try:
        app()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # polars' panics are no Exceptions
        sys.exit(tell(error))
