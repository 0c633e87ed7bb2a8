"""Options and small helpers that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from peftbench.errors import UserError, unknown
from peftbench.records import user_file
from peftbench.report.media import terminal

Source = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A YAML file, or the name of a packaged experiment.")]
Results = Annotated[
    Path | None, typer.Option("--results", metavar="DIR", help="Directory of the records. Default: results/NAME.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Folder with data sets, such as GLUE's official files.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps, in place of the file's."),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="KEY=VALUE", help="Part of the grid: method=lora, task=glue/rte. May be repeated."),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a value: budget.steps=10, methods.lora.rank=4. Repeatable."
    ),
]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="File with methods of your own. May be repeated.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

MOST_THREADS = 4_096  # more than any machine has cores


def known_methods(plugins: list[Path] | None) -> Any:
    """Return the facts of every method by its name, plugins included."""
    from peftbench.method.catalogue import Catalogue

    catalogue = Catalogue(tuple(user_file.resolved(p) for p in plugins or ()))
    known = catalogue.methods()
    catalogue.save()
    return known


def say(text: object, out: IO[str] | None = None) -> None:
    """Print a text of one or more lines, which may have names from users in it; control characters do not act."""
    print(terminal.lines(str(text)), file=out or sys.stdout, flush=True)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(terminal.json_lines(json.dumps(value, indent=2, ensure_ascii=False)))


@contextmanager
def executor_errors_exit() -> Iterator[None]:
    """Turn an error of the executor into its message and exit code 1."""
    from peftbench.run.executors import ExecutorError

    try:
        yield
    except ExecutorError as e:
        say(f"error: {e}", sys.stderr)
        raise typer.Exit(1) from e


def check_device_name(device: str | None) -> None:
    """Raise a UserError if the value of `--device` is not the name of a device."""
    import re

    if device is not None and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise unknown("device", device, ["auto", "cpu", "cuda", "cuda:0", "mps"], where="--device")


def threads_from_environment() -> int | None:
    """Return the number of threads that OMP_NUM_THREADS sets, or None if it is not set.

    Of a list, the first number counts: it is the outermost level.

    Raises:
        UserError: the value is not a whole number from 1 to `MOST_THREADS`.
    """
    import os

    value = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = value.partition(",")[0].strip()
    is_number = first.isdecimal() and len(first) <= len(str(MOST_THREADS))
    if value and not (is_number and 0 < int(first) <= MOST_THREADS):
        valid = f"give a whole number from 1 to {MOST_THREADS:,}, or unset it"
        raise UserError(f"OMP_NUM_THREADS={value} in the environment: {valid}")
    return int(first) if value else None
