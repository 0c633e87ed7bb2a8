"""The command line: arguments in, exit codes out.

Exit codes: 0 success, 1 a run or a check failed, 2 a user error, 130 interrupted. Each command imports what it needs
when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import warnings
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from peftbench import __version__
from peftbench.cli import adapters, catalogue, cost, experiments, methods, reports, verify
from peftbench.cli.options import say
from peftbench.errors import SetAside, UserError

GROUPS = (experiments, reports, verify, catalogue, methods, cost, adapters)  # in the order of `--help`

app = typer.Typer(
    name="peftbench",
    help="Compare fine-tuning methods on your model, task and budget, with evidence.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # importing rich takes a third of a second
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main() -> None:
    """Run the command line. A UserError prints one message and exits with code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # on a terminal that lacks a character
    _show_set_aside()
    try:
        app()
    except UserError as e:
        say(f"error: {e}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _show_set_aside() -> None:
    """Show the warning of files that are no records as the notes of a plan are shown."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, SetAside):
            say(f"note: {message}", sys.stderr)
        else:
            shown(message, category, *place, **more)

    warnings.showwarning = show


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        say(f"peftbench {__version__}")
        raise typer.Exit


for group in GROUPS:
    for name, command in group.COMMANDS.items():
        app.command(name)(command)
