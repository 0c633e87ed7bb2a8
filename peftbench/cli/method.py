"""The commands about one method or one trained adapter: its size, its contract, its way to other programs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.options import AsJson, Plugins, known_methods, print_json
from peftbench.errors import UserError, unknown


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

    from peftbench.estimate import count as counting

    asked = counting.Question(model, task, labels, None if roles is None else counting.parsed_roles(roles))
    counted = counting.count(asked, method, counting.parsed(hyper or ()), tuple(plugin or ()))
    if as_json:
        print_json(asdict(counted))
    else:
        print(counting.as_text(counted))


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
    from peftbench.method.interop import to_peft, to_transformers
    from peftbench.method.interop.trained_adapter import open_trained

    opened = open_trained(trained, backbone, labels, plugin or ())
    if to == "merged":
        to_transformers.write(opened, folder)
    else:
        for remark in to_peft.write(opened, folder):
            print(f"note: {remark}", file=sys.stderr)
    print(f"wrote {folder}")


def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What peft's save_pretrained wrote.")],
    backbone: Annotated[str, typer.Option("--backbone", help="The base model: a name, a directory or a hub id.")],
    out: Annotated[Path | None, typer.Option("--out", help="The adapter file. Default: DIR.safetensors.")] = None,
    labels: Annotated[int | None, typer.Option("--labels", min=1, help="Outputs of the head; 1: regression.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="A hub model's commit, branch or tag.")] = None,
) -> None:
    """Read an adapter that Hugging Face peft saved into an adapter file of peftbench."""
    from peftbench.method.interop import from_peft

    path = out or folder.with_name(f"{folder.name}.safetensors")
    print(f"wrote {path}: {from_peft.read(folder, backbone, path, labels, revision)}")


def new_method(name: Annotated[str, typer.Argument(metavar="NAME", help="What experiments will call it.")]) -> None:
    """Begin a method of your own: a copy of the template with the names filled in."""
    from peftbench.method import scaffold

    path = scaffold.new_method(name, known_methods(None), Path.cwd())
    plugin, checked = ("", name) if path.parent.name == "methods" else (f" --plugin {path.name}", path.name)
    print(f"wrote {path}\nfill it in, then look at its card:  python -m peftbench methods {name}{plugin}")
    print(f"and hold it to the contract, which decides:  python -m peftbench check-method {checked}")


def check_method(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A method, or a file (.py) that registers some.")],
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Hold a method to the contract: every promise, kept or broken, with what to look at."""
    from peftbench.cli import check_view
    from peftbench.verify import check_method as checks

    classes = checks.chosen(name, plugin or ())
    with check_view.progress(classes) as tell:
        found = [checks.examine(cls, tell) for cls in classes]
    if as_json:
        print_json([check_view.as_dict(f) for f in found])
    else:
        width = max(60, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100
        print("\n\n".join(check_view.text(f, width) for f in found))
    raise typer.Exit(0 if all(f.sound for f in found) else 1)


COMMANDS: dict[str, Callable[..., None]] = {
    "count": count,
    "export": export,
    "import": import_,
    "new-method": new_method,
    "check-method": check_method,
}
