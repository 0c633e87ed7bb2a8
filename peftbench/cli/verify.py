"""The command that repeats records: `verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli import progress
from peftbench.cli.options import (
    AsJson,
    DataDir,
    Plugins,
    Quiet,
    check_device_name,
    executor_errors_exit,
    print_json,
    say,
)
from peftbench.plan import limits
from peftbench.records import scratch, user_file

Sample = Annotated[
    int | None, typer.Option("--sample", min=1, metavar="N", help="Runs to repeat, of all methods. Default: all runs.")
]
RecordDevice = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="In place of the device of each record.")
]
Limit = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=N", help="Repeat runs that ask for more: steps=200000. May be repeated."),
]
Keep = Annotated[
    Path | None, typer.Option("--keep", metavar="DIR", help="Folder for the new records. Default: not kept.")
]


def verify(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results directory.")],
    sample: Sample = None,
    seed: Annotated[int, typer.Option("--seed", metavar="SEED", help="Chooses the runs of the sample.")] = 0,
    data_dir: DataDir = None,
    device: RecordDevice = None,
    plugin: Plugins = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=limits.JOBS, metavar="N", help="Worker processes.")] = 1,
    keep: Keep = None,
    limit: Limit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check all records and repeat a sample of their runs.

    On the same machine with the same versions, a repeated run must agree bit for bit.
    """
    from peftbench.verify.records import bounds, repeat, summary

    check_device_name(device)
    request = repeat.RepeatRequest(
        number=sample,
        seed=seed,
        data_dir=data_dir,
        plugins=tuple(user_file.resolved(p) for p in plugin or ()),
        jobs=jobs,
        device=device,
        limits=bounds.parse(limit or ()),
        view=progress.view(quiet or as_json),
    )
    with executor_errors_exit(), scratch.folder("verify") as folder:
        audit = repeat.verify(results, keep or folder, request)
    if as_json:
        print_json(summary.as_dict(audit))
    else:
        say(summary.as_text(audit, results))
    raise typer.Exit(audit.code)


COMMANDS: dict[str, Callable[..., None]] = {"verify": verify}
