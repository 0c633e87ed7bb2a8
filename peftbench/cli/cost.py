"""The commands about what a method costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from peftbench import api
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
from peftbench.errors import UserError, unknown


def profile(
    experiment: Source,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = None,
    only: OnlyPart = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Timed rounds in each process.")] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="One after another, in place of the file's.")
    ] = None,
    plugin: Plugins = None,
    override: Override = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure step time and latency of an experiment's methods, without training them; again, if it was done."""
    from peftbench.cli import progress
    from peftbench.plan.next_runs import passes
    from peftbench.records import record
    from peftbench.report.data import pooled
    from peftbench.report.tables import passed
    from peftbench.run import runner
    from peftbench.run.executors import ExecutorError

    check_device(device)
    threads = threads_asked()
    asked = api.plan(experiment, only=only or (), overrides=override or (), data_dir=data_dir, plugins=plugin or ())
    read, chosen = asked.experiment, asked.results_dir(results)
    check_device_is_here(device or read.device)
    recorded = record.read_all(chosen)
    planned = [p for p in asked.prepared.with_best_trials(recorded).planned if p.spec.trial is None]
    specs = passes(read, read.profile_of(rounds, processes), planned)
    before = {r.path for r in recorded}
    try:
        outcome = runner.run(
            lambda _: specs,
            chosen,
            experiment=read.name,
            overrides=read.overrides,
            reference=read.reference,
            session_kwargs=asked.session(device),
            profile_threads=threads,
            again=True,
            view=progress.view(quiet or as_json),
        )
    except ExecutorError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(1) from e
    records = record.read_all(chosen)
    done = pooled.passes(r for r in records if r.path not in before and r.is_finished)
    if as_json:
        print_json(passed.rows(done, records))
    elif not quiet:
        print("\n".join(passed.text(r, records) for r in done))
    raise typer.Exit(outcome.code)


def estimate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name such as llama-2-70b, a directory or hub id.")],
    method: Annotated[str | None, typer.Argument(metavar="METHOD", help="One of `peftbench methods`.")] = None,
    hyper: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its hyperparameters.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Texts in a step.")] = 1,
    seq: Annotated[int, typer.Option("--seq", help="Tokens of each text.")] = 512,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 (fp32) or bfloat16 (bf16).")] = "float32",
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw (the method's own), sgd, adamw8bit.")] = "adamw",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Gradient checkpointing.")] = False,
    attention: Annotated[str | None, typer.Option("--attention", help="math or flash. Default: as torch here.")] = None,
    padding: Annotated[
        bool | None, typer.Option("--padding/--no-padding", help="Texts differ in length. Default: unless batch is 1.")
    ] = None,
    by_role: Annotated[bool, typer.Option("--by-role", help="Split the peak by module role.")] = False,
    every_layer: Annotated[bool, typer.Option("--every-layer", help="Simulate all layers of a deep network.")] = False,
    fit: Annotated[str | None, typer.Option("--fit", help="Largest --fit-axis within 24GB (10^9) or 24GiB.")] = None,
    fit_axis: Annotated[str, typer.Option("--fit-axis", help="What --fit enlarges: batch or seq.")] = "batch",
    every: Annotated[bool, typer.Option("--all", help="Every method at its defaults.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="With --all: table and figure go here.")] = None,
    reference: Annotated[str, typer.Option("--reference", help="With --all: the method of the ratios.")] = "full",
    task: Annotated[str | None, typer.Option("--task", help="classification or generation. Default: by model.")] = None,
    labels: Annotated[int, typer.Option("--labels", min=1, help="Outputs of a classifier's head.")] = 2,
    roles: Annotated[str | None, typer.Option("--roles", help="As backbone.roles in a file: {q: PATH, ...}.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Predict the memory of a training step, its parts and its operations, for any model, without its weights."""
    from peftbench.estimate import count as counting
    from peftbench.estimate import step

    if every == (method is not None):
        raise UserError("give a METHOD, or --all for every method at its defaults" + ("; not both" if every else ""))
    if out is not None and not every:
        raise UserError("--out goes with --all: it takes the table and the figure of every method")
    if every and (fit is not None or by_role):
        raise UserError("--all goes with neither --fit nor --by-role; name a METHOD for these")
    asked = counting.Question(model, task, labels, None if roles is None else counting.parsed_roles(roles))
    setting = step.Setting(batch, seq, dtype, optimizer, checkpointing, attention, padding, every_layer)
    if every:
        _every(asked, setting, plugin, (out, reference), as_json)
        return
    values = counting.parsed(hyper or ())

    def ask(where: Any) -> Any:
        return step.estimate(asked, str(method), values, where, tuple(plugin or ()), by_role)

    if fit is not None:
        _fit(fit, fit_axis, setting, ask, as_json)
        return
    _show(ask(setting), as_json)


def _show(found: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from peftbench.estimate import text

    if as_json:
        print_json(asdict(found))
    else:
        print(text.as_text(found))


def _fit(size: str, axis: str, setting: Any, ask: Callable[[Any], Any], as_json: bool) -> None:
    """Exit code 1 where nothing fits."""
    from dataclasses import asdict

    from peftbench.estimate import fit, text

    if axis not in fit.AXES:
        raise unknown("axis", axis, fit.AXES, where="--fit-axis")
    found = fit.fit(fit.parsed_size(size), axis, setting, ask)
    if as_json:
        print_json(asdict(found))
    else:
        print(text.fit_text(found))
    if not found.largest:
        raise typer.Exit(1)


def _every(asked: Any, setting: Any, plugin: list[Path] | None, told: tuple[Path | None, str], as_json: bool) -> None:
    from dataclasses import asdict

    from peftbench.estimate import step, text

    (out, reference), found, refused = told, [], {}
    known = known_methods(plugin)
    if reference not in known:
        raise unknown("method", reference, known, where="--reference")
    step.count_network(asked)  # a mistake in the model is everyone's
    for name in known:
        print(f"estimating {name} ...", file=sys.stderr, flush=True)  # up to a minute each for the largest
        try:
            found.append(step.estimate(asked, name, {}, setting, tuple(plugin or ())))
        except UserError as error:  # a method that this network cannot take, with its reason
            refused[name] = str(error)
    if not found:
        raise UserError("; ".join(dict.fromkeys(refused.values())))
    found.sort(key=lambda e: e.method != reference)
    written = [] if out is None else text.write(out, found, refused, reference)
    if as_json:
        print_json({"estimates": [asdict(e) for e in found], "refused": refused})
    else:
        print("\n".join([text.table(found, refused, reference), *(f"wrote {path}" for path in written)]))


COMMANDS: dict[str, Callable[..., None]] = {"estimate": estimate, "profile": profile}
