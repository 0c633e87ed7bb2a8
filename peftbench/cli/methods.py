"""The commands for authors of methods: `new-method` and `check-method`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.options import AsJson, Plugins, known_methods, print_json, say


def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the method in experiment files.")],
) -> None:
    """Start a method of your own from the template.

    In a clone of peftbench the file goes to methods/, elsewhere to the working directory.
    """
    from peftbench.method import scaffold

    path = scaffold.new_method(name, known_methods(None), Path.cwd())
    plugin, checked = ("", name) if path.parent.name == "methods" else (f" --plugin {path.name}", path.name)
    say(f"wrote {path}\nfill it in, then look at its card:  python -m peftbench methods {name}{plugin}")
    say(f"and test it against the contract:  python -m peftbench check-method {checked}")


def check_method(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A method, or a file (.py) that registers methods.")],
    hyper: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Hyperparameters to try alone, such as rank=16 or roles='q v'."),
    ] = None,
    plugin: Plugins = None,
    all_networks: Annotated[
        bool,
        typer.Option(
            "--all-networks",
            help="Try it also on classifiers of each family, and on decoders with sliding windows, soft-capping, "
            "attention sinks, one key-value head, and experts.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Test a method against the contract.

    It reports each promise of the contract as kept or broken, and what to look at for a broken one. The exit code is 1
    if a promise is broken. Without KEY=VALUE it tries the defaults, and one other value of each hyperparameter.
    """
    from peftbench.cli import check_view
    from peftbench.estimate.count import parsed
    from peftbench.verify import check_method as checks
    from peftbench.verify.contract.networks import FAMILIES, NETWORKS

    classes, networks = checks.chosen(name, plugin or ()), NETWORKS if all_networks else FAMILIES
    given = parsed(hyper or ())
    with check_view.progress(classes, networks, given) as tell:
        examinations = [checks.examine(cls, tell, networks, given) for cls in classes]
    if as_json:
        print_json([check_view.as_dict(e) for e in examinations])
    else:
        width = max(60, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100
        say("\n\n".join(check_view.text(e, width) for e in examinations))
    raise typer.Exit(0 if all(e.sound for e in examinations) else 1)


COMMANDS: dict[str, Callable[..., None]] = {"new-method": new_method, "check-method": check_method}
