"""The commands about what a method costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from peftbench.cli_options import (
    AsJson,
    DataDir,
    Device,
    OnlyPart,
    Plugins,
    Quiet,
    Results,
    Source,
    check_device,
    print_json,
    threads_asked,
)


def profile(
    experiment: Source,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = None,
    only: OnlyPart = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Timed rounds, in place of the file's.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure step time and latency of an experiment's methods, without training them; again, if it was done."""
    from peftbench import record, runner
    from peftbench.plan import passes
    from peftbench.prepare import prepare
    from peftbench.report import passed
    from peftbench.workers import WorkerError

    check_device(device)
    threads = threads_asked()
    prepared = prepare(experiment, only or (), data_dir, plugin or ())
    read, chosen = prepared.experiment, prepared.results_dir(results)
    asked = read.profile_of(rounds)
    specs = passes(read, asked, prepared.planned)
    before = {r.path for r in record.read_all(chosen)}
    session = {
        "device": device or read.device,
        "data_dir": None if data_dir is None else str(data_dir),
        "plugins": [str(p) for p in prepared.manifest.plugins],
        "adapters": None,
    }
    try:
        outcome = runner.run(
            lambda _: specs,
            chosen,
            experiment=read.name,
            session_kwargs=session,
            profile_threads=threads,
            again=True,
            quiet=quiet or as_json,
        )
    except WorkerError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(1) from e
    records = record.read_all(chosen)
    done = [r for r in records if r.path not in before and r.is_finished]
    if as_json:
        print_json(passed.rows(done, records))
    elif not quiet:
        print("\n".join(passed.text(r, records) for r in done))
    raise typer.Exit(outcome.code)


COMMANDS: dict[str, Callable[..., None]] = {"profile": profile}
