"""The command line of a measurement."""

from collections.abc import Callable

import typer

from cetnet.trainer.console import quieten
from cetnet.trainer.failures import run_told


def run_command(main: Callable[..., None]) -> None:
    """Run `main` with the arguments of the command line; what ends it is told, and its exit code, as by `cetnet`."""
    quieten()
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(main)
    run_told(app)
