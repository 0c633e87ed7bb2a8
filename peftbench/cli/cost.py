"""The commands that compute what a method costs on any model: `count` and `estimate`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftbench.cli import card_view
from peftbench.cli.options import AsJson, Plugins, known_methods, print_json, say
from peftbench.errors import UserError, unknown

if TYPE_CHECKING:
    from peftbench.estimate.count import ModelQuery
    from peftbench.estimate.step_estimate import Setting, StepEstimate

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name such as llama-2-70b, a directory, or a hub id.")]
Method = Annotated[str, typer.Argument(metavar="METHOD", help="One of `peftbench methods`.")]
OptionalModel = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A name such as llama-2-70b, a directory, or a hub id.")
]
OptionalMethod = Annotated[str | None, typer.Argument(metavar="METHOD", help="One of `peftbench methods`.")]
Hyper = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Hyperparameters, such as rank=16 or roles='q v'.")
]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="KIND", help="classification or generation. Default: what the model is made for."),
]
Labels = Annotated[int, typer.Option("--labels", min=1, metavar="N", help="Outputs of a classifier's head.")]
Roles = Annotated[
    str | None, typer.Option("--roles", metavar="ROLES", help="As backbone.roles in a file: {q: PATH, ...}.")
]

Batch = Annotated[int, typer.Option("--batch", metavar="N", help="Texts in a step; with --shards, on each device.")]
Seq = Annotated[int, typer.Option("--seq", metavar="N", help="Tokens of each text.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="DTYPE", help="float32 (fp32) or bfloat16 (bf16). Default: float32, or --program's."
    ),
]
ProgramName = Annotated[
    str,
    typer.Option("--program", metavar="NAME", help="Whose step: peftbench or one of --programs."),
]


def _list_programs(asked: bool) -> None:
    """Print the programs and their parts, and end."""
    if asked:
        from peftbench.estimate.program import programs

        say(programs.listing())
        raise typer.Exit


ListPrograms = Annotated[
    bool,
    typer.Option(
        "--programs", is_eager=True, callback=_list_programs, help="List --program's names and parts, and end."
    ),
]
Parts = Annotated[
    list[str] | None,
    typer.Option("--part", metavar="NAME=VALUE", help="With --program: a part of it, such as loss=fused. Repeatable."),
]
Optimizer = Annotated[
    str | None,
    typer.Option("--optimizer", metavar="NAME", help="adamw (the method's own, the default), sgd or adamw8bit."),
]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Use gradient checkpointing.")]
Attention = Annotated[
    str | None, typer.Option("--attention", metavar="KERNEL", help="math or flash. Default: as torch chooses here.")
]
Padding = Annotated[
    bool | None,
    typer.Option("--padding/--no-padding", help="Whether texts differ in length. Default: only if batch is above 1."),
]
ByRole = Annotated[bool, typer.Option("--by-role", help="Split the peak by module role.")]
EveryLayer = Annotated[bool, typer.Option("--every-layer", help="Simulate all layers of a deep network.")]
Shards = Annotated[
    int, typer.Option("--shards", metavar="N", help="Devices that share the base's weights (FSDP2); sizes are of one.")
]
Offload = Annotated[bool, typer.Option("--offload", help="With --shards: keep the shards in the host's memory.")]
FitSize = Annotated[
    str | None, typer.Option("--fit", metavar="SIZE", help="Find the largest --fit-axis within 24GB (10^9) or 24GiB.")
]
FitAxis = Annotated[
    str | None, typer.Option("--fit-axis", metavar="AXIS", help="What --fit enlarges: batch (the default) or seq.")
]
AllMethods = Annotated[bool, typer.Option("--all", help="Estimate every method at its defaults.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="With --all or --check: folder for table and figure.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Compare predictions with published measurements, of groups given as letters.")
]
Stored = Annotated[bool, typer.Option("--stored", help="With --check: the predictions that came with the package.")]
Reference = Annotated[
    str, typer.Option("--reference", metavar="METHOD", help="With --all: the method that ratios are relative to.")
]
BESIDE_CHECK = ("model", "method", "hyper", "check", "stored", "out", "as_json")  # the first three are groups there


def count(
    model: Model,
    method: Method,
    hyper: Hyper = None,
    task: Task = None,
    labels: Labels = 2,
    roles: Roles = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Count the parameters that a method trains on any model.

    It counts exactly what the method trains and stores. It needs no weights.
    """
    from peftbench.estimate import count as counting

    query = _query(model, task, labels, roles)
    counted = counting.count(query, method, counting.parsed(hyper or ()), tuple(plugin or ()))
    if as_json:
        print_json(asdict(counted))
    else:
        say(counting.as_text(counted))


def estimate(
    ctx: typer.Context,
    model: OptionalModel = None,
    method: OptionalMethod = None,
    hyper: Hyper = None,
    batch: Batch = 1,
    seq: Seq = 512,
    dtype: Dtype = None,
    program: ProgramName = "peftbench",
    part: Parts = None,
    optimizer: Optimizer = None,
    checkpointing: Checkpointing = False,
    attention: Attention = None,
    padding: Padding = None,
    by_role: ByRole = False,
    every_layer: EveryLayer = False,
    shards: Shards = 1,
    offload: Offload = False,
    fit: FitSize = None,
    fit_axis: FitAxis = None,
    gpu: card_view.Gpu = None,
    gpus: card_view.Gpus = None,
    context: card_view.Context = None,
    examples: card_view.Examples = None,
    epochs: card_view.Epochs = None,
    price: card_view.Price = None,
    prices: card_view.PriceFile = None,
    currency: card_view.Currency = None,
    all_methods: AllMethods = False,
    out: Out = None,
    reference: Reference = "full",
    check: Check = False,
    stored: Stored = False,
    list_programs: ListPrograms = False,
    task: Task = None,
    labels: Labels = 2,
    roles: Roles = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Predict the memory of a training step on any model; with --gpu, whether it fits, its time and its cost.

    It reports the peak, its parts and the operations of the step. It needs no weights.
    """
    from peftbench.estimate import step_estimate
    from peftbench.estimate.program import programs

    if check:
        from peftbench.cli import published_view

        _check_beside_check(ctx)
        groups = [word for word in (model, method, *(hyper or ())) if word is not None]
        published_view.check(groups, stored, out, as_json)
        return
    if stored:
        raise UserError("--stored goes with --check")
    if model is None:
        raise UserError("give a MODEL and a METHOD, such as: peftbench estimate llama-3.1-8b lora; or --check")
    _check_combination(method, all_methods, out, fit, by_role)
    if fit is None and fit_axis is not None:
        raise UserError(f"--fit-axis {fit_axis} goes with --fit SIZE, the memory that it is enlarged to")
    given = programs.parsed_parts(part or [])
    if program != programs.OWN:
        again = "true" if checkpointing else None
        options = {"dtype": dtype, "optimizer": optimizer, "checkpointing": again, "attention": attention}
        given = programs.with_options(given, options)
    own = programs.program(program, given)
    asked = card_view.Asked(gpu, gpus, context, examples, epochs, price, prices, currency)
    asked.check(elsewhere=all_methods or fit is not None or by_role)
    setting = step_estimate.Setting(
        batch,
        seq,
        dtype or "float32",
        "adamw" if optimizer is None else optimizer,
        checkpointing,
        attention if own is None else None,
        padding,
        every_layer,
        shards,
        offload,
        own,
    )
    query = _query(model, task, labels, roles)
    if all_methods:
        _estimate_all(query, setting, plugin, out, reference, as_json)
    elif gpu is not None:
        _on_card(query, str(method), hyper, setting, plugin, asked, as_json)
    else:
        _estimate_one(query, str(method), hyper, setting, plugin, by_role, (fit, fit_axis or "batch"), as_json)


COMMANDS: dict[str, Callable[..., None]] = {"count": count, "estimate": estimate}


def _query(model: str, task: str | None, labels: int, roles: str | None) -> ModelQuery:
    from peftbench.estimate import count as counting

    return counting.ModelQuery(model, task, labels, None if roles is None else counting.parsed_roles(roles))


def _check_beside_check(ctx: typer.Context) -> None:
    """Raise `UserError` for an option that means nothing beside `--check`."""
    for option in ctx.command.params:
        given = ctx.get_parameter_source(str(option.name))
        if given is not None and given.name == "COMMANDLINE" and option.name not in BESIDE_CHECK:
            raise UserError(
                f"{option.opts[0]} does not go with --check, which simulates each published point as its source says; "
                "give letters of groups, --stored, --out DIR or --json, or leave --check out"
            )


def _check_combination(method: str | None, all_methods: bool, out: Path | None, fit: str | None, by_role: bool) -> None:
    if all_methods == (method is not None):
        both = "; not both" if all_methods else ""
        raise UserError(f"give a METHOD, or --all for every method at its defaults{both}")
    if out is not None and not all_methods:
        raise UserError("--out goes with --all: it takes the table and the figure of every method")
    if all_methods and (fit is not None or by_role):
        raise UserError("--all goes with neither --fit nor --by-role; name a METHOD for these")


def _estimate_one(
    query: ModelQuery,
    method: str,
    hyper: list[str] | None,
    setting: Setting,
    plugin: list[Path] | None,
    by_role: bool,
    fit: tuple[str | None, str],
    as_json: bool,
) -> None:
    from peftbench.estimate import count as counting
    from peftbench.estimate import step_estimate, tables

    values, plugins = counting.parsed(hyper or ()), tuple(plugin or ())
    _freeze()
    counted = counting.count(query, method, values, plugins)

    size, axis = fit

    def estimate_at(changed: Setting) -> StepEstimate:
        if size is not None:
            say(f"simulating batch {changed.batch:,}, {changed.seq:,} tokens ...", sys.stderr)
        return step_estimate.estimate(query, method, values, changed, plugins, by_role, counted)

    if size is not None:
        _fit(size, axis, setting, estimate_at, as_json)
        return
    estimated = estimate_at(setting)
    if as_json:
        print_json(asdict(estimated))
    else:
        say(tables.as_text(estimated))


def _on_card(
    query: ModelQuery,
    method: str,
    hyper: list[str] | None,
    setting: Setting,
    plugin: list[Path] | None,
    asked: card_view.Asked,
    as_json: bool,
) -> None:
    from peftbench.estimate import count as counting
    from peftbench.estimate import step_estimate
    from peftbench.estimate.card import fits

    def estimate_at(p: fits.Program) -> StepEstimate:
        say(f"simulating {card_view.step_in_words(p, program)} ...", sys.stderr)  # each may take seconds, or a minute
        return step_estimate.estimate(query, p.method, p.hyper, p.setting, tuple(plugin or ()))

    program = fits.Program(method, counting.parsed(hyper or ()), setting)
    question = asked.question(setting.shards, step_estimate.positions_of(query))
    card_view.show(program, question, estimate_at, as_json)


def _freeze() -> None:
    """Keep what is imported out of the garbage collection before each step; it takes a tenth of a second without."""
    gc.collect()
    gc.freeze()


def _fit(size: str, axis: str, setting: Setting, estimate_at: Callable[[Setting], StepEstimate], as_json: bool) -> None:
    """Print the largest batch or length that fits; exit with 1 if none does."""
    from peftbench.estimate import memory_fit, tables

    if axis not in memory_fit.AXES:
        raise unknown("axis", axis, memory_fit.AXES, where="--fit-axis")
    fitted = memory_fit.fit(memory_fit.parsed_size(size), axis, setting, estimate_at)
    if as_json:
        print_json(asdict(fitted))
    else:
        say(tables.fit_text(fitted))
    if not fitted.largest:
        raise typer.Exit(1)


def _estimate_all(
    query: ModelQuery,
    setting: Setting,
    plugin: list[Path] | None,
    out: Path | None,
    reference: str,
    as_json: bool,
) -> None:
    from peftbench.estimate import step_estimate, tables

    known = known_methods(plugin)
    if reference not in known:
        raise unknown("method", reference, known, where="--reference")
    _freeze()
    step_estimate.check_model(query)  # report a mistake in the model once, not for each method
    estimates, refused = _estimates(known, query, setting, plugin)
    estimates.sort(key=lambda e: e.method != reference)
    written = [] if out is None else tables.write(out, estimates, refused, reference)
    if as_json:
        print_json({"estimates": [asdict(e) for e in estimates], "refused": refused})
    else:
        say("\n".join([tables.table(estimates, refused, reference), *(f"wrote {path}" for path in written)]))


def _estimates(
    methods: Mapping[str, object], query: ModelQuery, setting: Setting, plugin: list[Path] | None
) -> tuple[list[StepEstimate], dict[str, str]]:
    """Return the estimates, and the reason of each method that the network cannot take."""
    from peftbench.estimate import step_estimate

    estimates, refused = [], {}
    for name in methods:
        say(f"estimating {name} ...", sys.stderr)  # a method may take a minute on a large model
        try:
            estimates.append(step_estimate.estimate(query, name, {}, setting, tuple(plugin or ())))
        except UserError as error:
            refused[name] = str(error)
    if not estimates:
        raise UserError("; ".join(dict.fromkeys(refused.values())))
    return estimates, refused
