"""The `shuntserve` command: assembles the command modules and turns errors into one line and an exit code.

A command module has `register(app)` and imports at its top level nothing but the standard library and typer; what a
command needs it imports when it runs. So `shuntserve --help` and the planning commands start in a fraction of a second,
also where neither vLLM nor torch is installed.
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from shuntserve.errors import InvalidInput, ShuntServeError

COMMAND_MODULES = (
    "shuntserve.cli.run",
    "shuntserve.cli.jobs",
    "shuntserve.cli.rows",
    "shuntserve.cli.logs",
    "shuntserve.cli.report",
    "shuntserve.cli.retry",
    "shuntserve.cli.fleet",
    "shuntserve.cli.inbox",
    "shuntserve.cli.estimate",
    "shuntserve.cli.plan",
    "shuntserve.cli.catalog",
    "shuntserve.cli.calibrate",
)

EXIT_FAILED = 1
EXIT_USAGE = 2


def build_app() -> typer.Typer:
    """The whole command line as one typer application."""
    app = typer.Typer(
        name="shuntserve",
        help="Offline batch LLM inference that survives kill -9: Parquet in, Parquet out, every row exactly once.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for module in COMMAND_MODULES:
        import_module(module).register(app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from shuntserve import __version__

        print(f"shuntserve {__version__}")
        raise typer.Exit


def _global_options(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
    ),
) -> None:
    """Options that stand before the command."""


def main() -> None:
    """Entry point of the console script. Exit codes: `core.states.EXIT_CODES`; 1 when something else failed."""
    try:
        build_app()()
    except InvalidInput as error:
        sys.exit(_report(error, EXIT_USAGE))
    except ShuntServeError as error:
        sys.exit(_report(error, EXIT_FAILED))


def _report(error: ShuntServeError, exit_code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
