"""The commands on results directories as files: `merge` brings several together, `pack` makes one file of many."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.options import say
from peftbench.errors import UserError
from peftbench.records import merging, packs, record

SHOWN = 10  # files that one line names


def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="Results directories, such as A B C.")],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="The directory for all of them; new, or not.")],
) -> None:
    """Bring the results of several machines together in one directory.

    Records and kept adapters are copied as they are, and the sources are not changed. The same command can be given
    again. Files that are damaged or foreign are named and left out; the exit code is then 1.
    """
    from peftbench.run import lock

    merging.check(sources, into)  # before the target is made
    with lock.hold(into):
        done = merging.merge(sources, into)
    for source in done:
        say(_line(source))
    left_out = [why for source in done for why in source.left_out]
    if left_out:
        more = [f"... and {len(left_out) - SHOWN} more"] if len(left_out) > SHOWN else []
        say("\n".join(["left out:", *left_out[:SHOWN], *more]), sys.stderr)
    say(f"next: python -m peftbench report {into}")
    raise typer.Exit(1 if left_out else 0)


def pack(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results directory whose runs are done.")],
) -> None:
    """Put the records of a results directory into one compressed file, runs.tar.xz.

    Every command reads packed records as it reads files, and `run` goes on beside them; given again, `pack` adds what
    is new. The records stay as they are, byte for byte: `tar -xJf runs.tar.xz` gives the files back.
    """
    from peftbench.run import lock

    folder = results / record.FOLDER
    if packs.are_there(results) and not any(folder.glob("*.json")):
        say(f"{packs.of(folder)}: {len(record.paths(results)):,} records, nothing new")
        return
    if not folder.is_dir():
        raise UserError(f"{results}: nothing to pack, as it has no folder {record.FOLDER}/; give a results directory")
    with lock.hold(results):
        record.read_all(results)  # what is damaged is said before it is packed
        before = sum(path.stat().st_size for path in folder.glob("*.json"))
        made = packs.write(folder)
    say(f"{made}: {len(record.paths(results)):,} records, {made.stat().st_size:,} bytes in place of {before:,}")


def _line(source: merging.Source) -> str:
    adapters = f", {source.adapters} files of adapters copied" if source.adapters else ""
    line = f"{source.folder}: {source.records} records, {source.copied} copied{adapters}"
    if not source.beside:
        return line
    more = f" and {len(source.beside) - SHOWN} more" if len(source.beside) > SHOWN else ""
    return f"{line}; another content has the name, so beside it: {', '.join(source.beside[:SHOWN])}{more}"


COMMANDS: dict[str, Callable[..., None]] = {"merge": merge, "pack": pack}
