"""The command that draws the papers' figures from records."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def figures(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Which ones. Default: all.")] = None,
    results: Annotated[Path, typer.Option("--results", help="The directory of the records.")] = Path("results"),
    out: Annotated[Path, typer.Option("--out", help="Where paper-figures.md and its folder go.")] = Path("docs"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 naming files that differ.")] = False,
) -> None:
    """Draw the papers' figures and tables from committed records, with a verdict each; see docs/paper-figures.md."""
    from peftbench.report.papers import _make
    from peftbench.report.papers._page import INDEX

    if check:
        if said := _make.check(names or (), results, out):
            print("\n".join(said), file=sys.stderr)
            print("`python -m peftbench figures` makes them again from the records.", file=sys.stderr)
            raise typer.Exit(1)
        print(f"{out}: as the records give it")
        return
    asked, wanted = _make.ask_all(results), _make.chosen(names or ())
    changed = _make.write(names or (), results, out, asked)
    for r in asked:
        if r.figure in wanted:
            print(f"{r.figure.name}: {r.verdict}" + (f" ({r.missing})" if r.missing else ""))
    print(f"{out / INDEX}: {len(changed)} file{'s' * (len(changed) != 1)} changed")


COMMANDS: dict[str, Callable[..., None]] = {"figures": figures}
