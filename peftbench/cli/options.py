"""What the command-line modules share: options, and the reading and printing that several commands do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from peftbench.errors import UserError, unknown

Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A file with a method of yours. May be repeated.")]
Source = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A YAML file, or the name of a packaged experiment.")]
Results = Annotated[Path | None, typer.Option("--results", help="Where records go. Default: results/NAME.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder with data sets, e.g. GLUE's official files.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps, in place of the file's.")]
OnlyPart = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="KEY=VALUE", help="A part of the grid: method, task, seed. May be repeated."),
]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="In place of the file's: budget.steps=10, methods.lora.rank=4."),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for other programs.")]


def known_methods(plugins: list[Path] | None) -> Any:
    """Every method by name, plugins included, from the catalogue."""
    from peftbench.method.catalogue import Catalogue

    catalogue = Catalogue(tuple(p.expanduser().resolve() for p in plugins or ()))
    known = catalogue.methods()
    catalogue.save()
    return known


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def check_device(device: str | None) -> None:
    """Raises UserError for a `--device` that is none."""
    import re

    if device is not None and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise unknown("device", device, ["auto", "cpu", "cuda", "cuda:0", "mps"], where="--device")


def check_device_is_here(device: str) -> None:
    """Raises UserError for a GPU that this machine lacks, before anything is planned for it."""
    if device not in ("auto", "cpu"):
        from peftbench.backbones.devices import pick  # torch: seconds, which only such a device is worth

        pick(device)


def threads_asked() -> int | None:
    """What OMP_NUM_THREADS asks of all programs; None where it is not set. Of a list, the outermost level counts."""
    import os

    given = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = given.partition(",")[0].strip()
    if given and not (first.isdecimal() and int(first) > 0):
        raise UserError(f"OMP_NUM_THREADS={given} in the environment: give a whole number from 1, or unset it")
    return int(first) if given else None
