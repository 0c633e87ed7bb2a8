"""The command line: arguments in, exit codes out.

Exit codes: 0 success, 1 a run or a check failed or the output is lost, 2 a user error, 130 interrupted, 141 nobody
reads the output any more. Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from peftbench import __version__
from peftbench.cli import adapters, catalogue, cost, experiments, methods, reports, streams, verify
from peftbench.cli.options import say
from peftbench.errors import UserError
from peftbench.run import children

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
    streams.use_utf8()
    output = streams.open_streams()
    children.adopt()
    before = children.below()
    code = _run()
    children.end_below(before)  # a method that the plan has tried may have started processes
    sys.exit(streams.exit_code(code, output, sys.argv[1:]))


def _run() -> int:
    """Run the command; return its exit code."""
    try:
        app()
    except UserError as e:
        say(f"error: {e}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0


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
