"""The command that writes the calculator's page: memory, time and cost of fine-tuning, for a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.options import say

OutFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="The HTML file to write.")]


def calculator(out: OutFile = Path("calculator.html")) -> None:
    """Write a page that computes memory, time and cost of fine-tuning in a browser, without a network."""
    from peftbench.estimate.calculator import page

    text = page.html()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    say(f"wrote {out} ({len(text.encode()) / 2**20:.1f} MiB); open it in a browser")


COMMANDS: dict[str, Callable[..., None]] = {"calculator": calculator}
