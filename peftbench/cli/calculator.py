"""The command that writes the calculator's page: memory, time and cost of fine-tuning, for a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.options import say

OutFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="The HTML file to write.")]
Serve = Annotated[
    bool,
    typer.Option(
        "--serve", help="Serve the page to this machine alone instead; it also computes a config.json exactly."
    ),
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="With --serve; 0 takes a free one.")]


def calculator(out: OutFile = Path("calculator.html"), serve: Serve = False, port: Port = 8765) -> None:
    """Write a page that computes memory, time and cost of fine-tuning in a browser, without a network."""
    if serve:
        _serve(port)
        return
    from peftbench.estimate.calculator import page

    text = page.html()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    say(f"wrote {out} ({len(text.encode()) / 2**20:.1f} MiB); open it in a browser")


def _serve(port: int) -> None:
    from peftbench.estimate.calculator.serve import Server

    with Server(port) as server:
        say(f"the calculator is at {server.address} for this machine alone; end it with Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")


COMMANDS: dict[str, Callable[..., None]] = {"calculator": calculator}
