"""What the command-line modules share: options, and the reading and printing that several commands do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A file with a method of yours. May be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for other programs.")]


def known_methods(plugins: list[Path] | None) -> Any:
    """Every method by name, plugins included, from the manifest."""
    from peftbench.manifest import Manifest

    manifest = Manifest(tuple(p.expanduser().resolve() for p in plugins or ()))
    known = manifest.methods()
    manifest.save()
    return known


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
