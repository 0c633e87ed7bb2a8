"""The commands that take an experiment: `run`, `plan` and `profile`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftbench import api
from peftbench.cli import progress
from peftbench.cli.doing import Doing
from peftbench.cli.options import (
    AsJson,
    DataDir,
    Device,
    Only,
    Override,
    Plugins,
    Quiet,
    Results,
    Source,
    check_device_name,
    executor_errors_exit,
    print_json,
    say,
    threads_from_environment,
)
from peftbench.errors import UserError
from peftbench.plan import limits

if TYPE_CHECKING:
    from peftbench.estimate.run.calibrate import Place
    from peftbench.records.record import Record
    from peftbench.records.spec import Spec
    from peftbench.run.executors import Workers
    from peftbench.run.runner import Outcome

Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        max=limits.JOBS,
        metavar="N",
        help="Worker processes, in place of the file's. Without either: 1, or 1 for each GPU.",
    ),
]
Added = Annotated[
    list[str] | None,
    typer.Option(
        "--method", metavar="METHOD", help="Add a method, as in the file: 'lora: {rank: 2}'. May be repeated."
    ),
]
Against = Annotated[
    Path | None,
    typer.Option("--against", metavar="DIR", help="Run only the new method, and compare it with the records in DIR."),
]
Executor = Annotated[
    str, typer.Option("--executor", metavar="NAME", help="Where the runs run: local, ray, slurm, or one of a package.")
]
Address = Annotated[
    str | None, typer.Option("--address", metavar="ADDRESS", help="The cluster of --executor ray, such as auto.")
]
Pack = Annotated[
    bool, typer.Option("--pack", help="Several runs on one GPU, as many as its memory holds by the prediction.")
]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Also repeat runs that diverged, ran out of memory, failed or were given up."),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="End a run after so many seconds, in place of the file's."),
]


def run(
    experiment: Source,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = None,
    only: Only = None,
    jobs: Jobs = None,
    plugin: Plugins = None,
    method: Added = None,
    override: Override = None,
    against: Against = None,
    executor: Executor = "local",
    address: Address = None,
    pack: Pack = False,
    retry_failed: RetryFailed = False,
    timeout: Timeout = None,
    quiet: Quiet = False,
) -> None:
    """Run an experiment and write its report.

    Runs that have a finished record are skipped, so that the same command resumes. The report is written under the
    results directory, and its table is printed.
    """
    from peftbench.cli import data_view
    from peftbench.run import executors

    check_device_name(device)
    options, override = _executor_options(executor, override or [])
    if address is not None and executor != "ray":
        raise UserError(f"--address {address}: this is an option of the executor ray; add --executor ray")
    options |= ({"address": address} if address is not None else {}) | ({"pack": "true"} if pack else {})
    executors.check_options(executor, options)  # report an unknown name before planning
    threads_from_environment()  # and an invalid number
    loaded = _load(experiment, only, data_dir, plugin, method, override, against)
    loaded.check_device(device, must_exist=executor == "local")  # elsewhere, others have it
    folder, workers = loaded.results_dir(results), loaded.workers(device, jobs, executor, options)
    if not quiet:
        say(f"{data_view.text(loaded)}\n")
        say(_forecast(loaded, list(api.records(folder)), _place(loaded, device, workers), None)[1])
        if workers.note:
            say(workers.note)
    records = _run_missing(loaded, folder, device, workers.jobs, executor, options, retry_failed, timeout, quiet)
    _write_report(records, quiet)
    assert records.outcome is not None  # `api.run` sets it
    raise typer.Exit(records.outcome.code)


def plan(
    experiment: Source,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = None,
    only: Only = None,
    jobs: Jobs = None,
    plugin: Plugins = None,
    method: Added = None,
    override: Override = None,
    against: Against = None,
    as_json: AsJson = False,
) -> None:
    """Show the runs of an experiment: size, memory and time.

    It lists each run's trainable parameters, their deviation from the budget, the predicted peak memory of a step and
    the predicted time. For grids that take a minute or longer, it first measures a few steps on this machine.
    """
    from peftbench.cli import data_view, plan_view

    check_device_name(device)
    with Doing(f"planning {experiment} ...") as doing:
        loaded = _load(experiment, only, data_dir, plugin, method, override, against, doing.note)
        loaded.check_device(device, must_exist=False)
        workers = loaded.workers(device, jobs)
        doing.now(f"{loaded.experiment.name}: predicting memory and time of {len(loaded):,} runs ...")
        place = _place(loaded, device, workers)
        records = list(api.records(loaded.results_dir(results)))
        rows, summary = _forecast(loaded, records, place, doing.now)
    if as_json:
        print_json(rows)
        return
    say(plan_view.plan_table(rows, loaded.experiment.reference))
    say(f"\n{data_view.text(loaded)}\n\n{summary}")
    if workers.note:
        say(workers.note)


def profile(
    experiment: Source,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = None,
    only: Only = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, max=limits.ROUNDS, metavar="N", help="Timed rounds in each process."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", min=1, max=limits.PROCESSES, metavar="N", help="Processes that repeat the measurement."
        ),
    ] = None,
    plugin: Plugins = None,
    override: Override = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure step time and latency, without training.

    It measures all configurations of the experiment, whether they have run or not. Each call measures anew.
    """
    from peftbench.plan import next_runs
    from peftbench.records import record

    check_device_name(device)
    threads = threads_from_environment()
    loaded = _load(experiment, only, data_dir, plugin, None, override, None)
    if loaded.experiment.parallel:
        raise UserError(
            "a profile pass measures one process, and `parallel` shares each run; these time their own steps"
        )
    folder = loaded.results_dir(results)
    loaded.check_device(device)
    earlier = record.readable(folder)
    final = [p for p in loaded.prepared.with_best_trials(earlier).planned if p.spec.trial is None]
    loaded.download_weights()
    passes = next_runs.passes(loaded.experiment, loaded.experiment.profile_of(rounds, processes), final)
    outcome = _run_passes(loaded, passes, folder, device, threads, quiet or as_json)
    _print_passes({r.path for r in earlier}, record.readable(folder), as_json, quiet)
    raise typer.Exit(outcome.code)


COMMANDS: dict[str, Callable[..., None]] = {"run": run, "plan": plan, "profile": profile}


def _load(
    experiment: str,
    only: list[str] | None,
    data_dir: Path | None,
    plugins: list[Path] | None,
    methods: list[str] | None,
    overrides: list[str] | None,
    against: Path | None,
    show: Callable[[str], None] = lambda line: say(line, sys.stderr),
) -> api.Plan:
    """Plan an experiment and show the notes of the plan, by default on standard error."""
    loaded = api.plan(
        experiment,
        only=only or (),
        methods=methods or (),
        overrides=overrides or (),
        data_dir=data_dir,
        plugins=plugins or (),
        against=against,
    )
    for note in loaded.notes:
        show(f"note: {note}")
    return loaded


def _forecast(
    loaded: api.Plan, records: list[Record], place: Place, say: Callable[[str], None] | None
) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a plan and its summary.

    With `say`, this machine is measured first where that helps; `say` gets a line about each measurement.
    """
    from peftbench.cli import plan_view
    from peftbench.estimate.run.forecast import forecast

    prepared = loaded.prepared.with_best_trials(records)
    predicted = forecast(prepared, records, place, say)
    rows = plan_view.plan_rows(prepared, records, predicted.times, predicted.peaks)
    return rows, plan_view.plan_summary(prepared, rows, place.jobs, predicted.loading)


def _place(loaded: api.Plan, device: str | None, workers: Workers) -> Place:
    """Return the device and the threads that the runs of this command line would have."""
    from peftbench.estimate.run.calibrate import Place
    from peftbench.run import executors

    jobs = workers.jobs
    threads = (threads_from_environment() if jobs == 1 else None) or max(1, executors.cores() // jobs)
    return Place(device or loaded.experiment.device, jobs, threads, loaded.data_dir, workers.devices)


def _run_missing(
    loaded: api.Plan,
    folder: Path,
    device: str | None,
    jobs: int,
    executor: str,
    options: dict[str, str],
    retry_failed: bool,
    timeout: float | None,
    quiet: bool,
) -> api.Records:
    try:
        with executor_errors_exit():
            return api.run(
                loaded,
                folder,
                device=device,
                jobs=jobs,
                retry_failed=retry_failed,
                timeout=timeout,
                threads=threads_from_environment(),
                executor=executor,
                executor_options=options,
                progress=progress.view(quiet),
            )
    except api.Interrupted as stopped:
        return stopped.records


def _executor_options(executor: str, overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the executor's options among `--set` values ("slurm.partition=gpu"), and the other values."""
    from peftbench.run import executors

    own = [text for text in overrides if text.startswith(f"{executor}.") and "=" in text]
    for text in overrides:
        if text not in own and (name := text.partition(".")[0]) in executors.names():
            raise UserError(f"--set {text}: this is an option of the executor {name}; add --executor {name}")
    pairs = (text.removeprefix(f"{executor}.").partition("=") for text in own)
    return {key: value for key, _, value in pairs}, [text for text in overrides if text not in own]


def _write_report(records: api.Records, quiet: bool) -> None:
    report = api.report(records)
    if report.loaded.comparisons:
        page = report.refresh()
        if not quiet:
            say(f"\n{report.table()}\nreport: {page}\npage: {page.with_name('index.html')}")


def _run_passes(
    loaded: api.Plan, passes: Sequence[Spec], folder: Path, device: str | None, threads: int | None, quiet: bool
) -> Outcome:
    from peftbench.run import runner

    with executor_errors_exit():
        return runner.run(
            lambda _: list(passes),
            folder,
            experiment=loaded.experiment.name,
            overrides=loaded.experiment.overrides,
            reference=loaded.experiment.reference,
            session_kwargs=loaded.session(device),
            profile_threads=threads,
            again=True,
            limits=loaded.experiment.timeout.limits(),
            view=progress.view(quiet),
        )


def _print_passes(earlier: set[Path], records: Sequence[Record], as_json: bool, quiet: bool) -> None:
    """Print the passes whose records are new."""
    from peftbench.records.record import ProfileRecord
    from peftbench.report.data import pooled_passes
    from peftbench.report.tables import profile_text

    made = [r for r in records if isinstance(r, ProfileRecord) and r.path not in earlier and r.is_finished]
    new = pooled_passes.pool(made)
    if as_json:
        print_json(profile_text.rows(new, records))
    elif not quiet:
        say("\n".join(profile_text.text(r, records) for r in new))
