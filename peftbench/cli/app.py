"""The command line: arguments in, exit codes out.

Exit codes: 0 success, 1 a run or a check failed or the output is lost, 2 a user error, 130 interrupted, 141 nobody
reads the output any more. Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from peftbench import __version__
from peftbench.cli import adapters, calculator, catalogue, cost, experiments, merging, methods, reports, streams, verify
from peftbench.cli.options import say
from peftbench.errors import SetAside, UserError, brief
from peftbench.run import children

USAGE_ERROR: Any = typer.BadParameter.__base__  # of an unknown option, a wrong value, a missing argument
GROUPS = (
    experiments,
    reports,
    merging,
    verify,
    catalogue,
    methods,
    cost,
    calculator,
    adapters,
)  # in the order of `--help`

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
    atexit.register(gc.freeze)  # the interpreter's end then does not visit the objects of all libraries once more
    streams.use_utf8()
    output = streams.open_streams()
    _show_set_aside()
    children.adopt()
    before = children.below()
    code = _run()
    children.end_below(before)  # a method that the plan has tried may have started processes
    children.adopt(False)
    sys.exit(streams.exit_code(code, output, sys.argv[1:]))


def _run() -> int:
    """Run the command; return its exit code."""
    try:
        return _code()
    except (UserError, OSError, MemoryError, RecursionError) as e:
        say(f"error: {_mistake(e)}", sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)


def _code() -> int:
    """Run the command that the arguments name, and return its exit code."""
    os.getcwd()  # raises where the working directory is gone: there, libraries of torch would end the process
    try:
        return app(standalone_mode=False) or 0
    except USAGE_ERROR as e:
        if len(sys.argv) > 1:  # without arguments, the message is the help
            e.message = brief(e.message)
        e.show()
        return int(e.exit_code)


def _mistake(error: Exception) -> UserError:
    """Return what a user reads. Anything that a command is given may be too much for the system or for Python."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError) and error.filename is None:  # of os.getcwd
        return UserError("the working directory is gone; change into one that exists")
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename is not None else ""
        return UserError(f"{what}{error.strerror or error}; check this path and the permissions of its folder")
    if isinstance(error, MemoryError):
        return UserError("the memory of this machine is not enough for what was given; give less of it")
    return UserError("what was given has values inside values, deeper than Python can follow; give flatter input")


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
