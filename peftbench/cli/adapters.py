"""The commands that convert trained adapters: `export` and `import`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.options import Plugins, say
from peftbench.errors import UserError, unknown

Labels = Annotated[
    int | None, typer.Option("--labels", min=1, metavar="N", help="Outputs of the task head; 1 for regression.")
]


def export(
    trained: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A kept adapter, or the record of a run.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder for the result.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="peft (an adapter) or merged (a model).")] = "peft",
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="MODEL", help="Base model, if the file does not name it.")
    ] = None,
    labels: Labels = None,
    plugin: Plugins = None,
) -> None:
    """Convert a trained adapter to Hugging Face peft, or merge it.

    The result is what peft's save_pretrained writes, or a plain transformers model with the adapter merged into it.
    """
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
            say(f"note: {remark}", sys.stderr)
    say(f"wrote {folder}")


def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that peft's save_pretrained wrote.")],
    backbone: Annotated[
        str, typer.Option("--backbone", metavar="MODEL", help="Base model: a name, a directory or a hub id.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The adapter file. Default: DIR.safetensors.")
    ] = None,
    labels: Labels = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REVISION", help="Commit, branch or tag of a hub model.")
    ] = None,
) -> None:
    """Convert an adapter of Hugging Face peft to an adapter file.

    The file is one that peftbench itself writes and reads.
    """
    from peftbench.method.interop import from_peft

    path = out or folder.with_name(f"{folder.name}.safetensors")
    say(f"wrote {path}: {from_peft.read(folder, backbone, path, labels, revision)}")


COMMANDS: dict[str, Callable[..., None]] = {"export": export, "import": import_}
