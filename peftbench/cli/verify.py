"""The command that holds records to what this code computes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.options import AsJson, DataDir, Plugins, Quiet, check_device, print_json


def verify(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results directory.")],
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="How many runs to repeat, spread over methods. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which ones: another seed, another sample.")] = 0,
    data_dir: DataDir = None,
    device: Annotated[str | None, typer.Option("--device", help="In place of the one that each record names.")] = None,
    plugin: Plugins = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Worker processes.")] = 1,
    keep: Annotated[Path | None, typer.Option("--keep", help="Where the repeats stay. Default: nowhere.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check every record, run a sample of them again, and compare: bit for bit on the same machine and versions."""
    from peftbench.cli import progress
    from peftbench.run.executors import ExecutorError
    from peftbench.verify.records import repeat, text

    check_device(device)
    asked = repeat.Asked(
        number=sample,
        seed=seed,
        data_dir=data_dir,
        plugins=tuple(p.expanduser().resolve() for p in plugin or ()),
        jobs=jobs,
        device=device,
        view=progress.view(quiet or as_json),
    )
    try:
        with tempfile.TemporaryDirectory(prefix="peftbench-verify-") as scratch:
            found = repeat.verify(results, keep or Path(scratch), asked)
    except ExecutorError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(1) from e
    if as_json:
        print_json(text.rows(found))
    else:
        print(text.text(found, results))
    raise typer.Exit(found.code)


COMMANDS: dict[str, Callable[..., None]] = {"verify": verify}
