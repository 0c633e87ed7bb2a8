"""The commands that show what records say: `report`, `page` and `figures`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from peftbench import api
from peftbench.cli.options import AsJson, print_json, say
from peftbench.errors import UserError, shown


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results directory.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for the report. Default: RESULTS/report.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="DIR", help="Compare with the records in DIR, in the same tables."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if the report there is not up to date.")
    ] = False,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="A,B,...", help="Columns of the tables of scores; `all`: in LaTeX as well."),
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write the figures as PDF files, too.")] = False,
    verdict: Annotated[
        bool, typer.Option("--verdict", help="Print what to take and what is open, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write tables and figures from records.

    The tables are printed, too. With --json, their rows are printed, and files are written only with --out. A LaTeX
    table has score, trainable, memory and step; --columns chooses others, and --columns all writes every one.
    CSV files keep all columns.
    """
    names = [] if columns is None else [name.strip() for name in columns.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"--columns {shown(columns)}: give each column once, such as --columns score,trainable,memory")
    compared = api.report(results, against=against)
    if verdict:
        if check or pdf or columns is not None or out is not None:
            raise UserError("--verdict writes nothing; leave out --check, --out, --columns and --pdf beside it")
        _print_verdict(compared, as_json)
        return
    if check:
        outdated = compared.check(out, names, pdf)
        say("\n".join(outdated) or f"{out or compared.place}: every file is what the records give")
        raise typer.Exit(1 if outdated else 0)
    if as_json:
        print_json(compared.rows())
        if out is None:
            return
    page = compared.write(out, names, pdf)
    if not as_json:
        say(f"{compared.table(names)}\nreport: {page}\npage: {page.with_name('index.html')}")


def _print_verdict(compared: api.Report, as_json: bool) -> None:
    from peftbench.report import assemble
    from peftbench.report.tables import answers, terminal

    assemble.require_records(compared.loaded, compared.folder)
    if as_json:
        print_json([answers.json_ready(a) for a in compared.verdict()])
    else:
        say(terminal.verdicts(compared.loaded.comparisons))


def figures(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Figures. Default: all.")] = None,
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="Directory with the committed records.")
    ] = Path("results"),
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for paper-figures.md and the figures.")
    ] = Path("docs"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 and name the files that are not up to date.")
    ] = False,
) -> None:
    """Draw the papers' figures from committed records.

    Each figure comes with a table and a verdict on the paper's claim; docs/paper-figures.md shows them all.
    """
    from peftbench.report.papers import _build
    from peftbench.report.papers._page import INDEX

    if check:
        if outdated := _build.check(names or (), results, out):
            say("\n".join(outdated), sys.stderr)
            say("`python -m peftbench figures` makes them again from the records.", sys.stderr)
            raise typer.Exit(1)
        say(f"{out}: as the records give it")
        return
    answers, chosen = _build.reproduce_all(results), _build.chosen(names or ())
    changed = _build.write(names or (), results, out, answers)
    for answer in answers:
        if answer.figure in chosen:
            missing = f" ({answer.missing})" if answer.missing else ""
            say(f"{answer.figure.name}: {answer.verdict}{missing}")
    say(f"{out / INDEX}: {len(changed)} file{'s' * (len(changed) != 1)} changed")


def page(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="Results directories.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="File of the page; with several results the folder of the site. Default: RESULTS/report/index.html, "
            "or site.",
        ),
    ] = None,
) -> None:
    """Write the page of a report for a browser, and no figures.

    The page is one file that needs no network. With several results directories: a folder with a page for each, and an
    index with all verdicts.
    """
    from peftbench.report import site

    made = site.write_page(results[0], out) if len(results) == 1 else site.write(results, out or Path("site"))
    for folder in made.left_out:
        say(f"note: {folder}: no records of runs here; left out", sys.stderr)
    say(f"page: {made.path}")


EXPLAINED = (
    "Give a results directory, and the row and the column of a cell or a number as a table prints it, such as: "
    "peftbench explain results/quickstart lora score, or: peftbench explain results/quickstart 0.776"
)


def explain(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RESULTS NUMBER|ROW COLUMN", help="A results directory, and a number as printed or a cell's name."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TITLE", help="Title of the table. Default: every table.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say where a number of a table comes from: its formula, the records, their raw values and the computation.

    For example: peftbench explain results/quickstart lora score, or peftbench explain results/quickstart 0.776
    """
    from peftbench.report.tables import explained

    given = what or []
    if not given:
        raise UserError(f"explain: nothing is given. {EXPLAINED}")
    folder = next((word for word in given if Path(word).is_dir()), None)
    if folder is None:
        raise UserError(f"explain {shown(' '.join(given))}: none of this is a results directory. {EXPLAINED}")
    words = [word for word in given if word != folder]
    cells = api.report(folder).cells()
    if not words:
        raise UserError(f"explain {shown(folder)}: which number? {explained.named(cells)} {EXPLAINED}")
    found = explained.chosen(cells, " ".join(words), task)
    if as_json:
        print_json(explained.json_ready(found))
    else:
        say(explained.text(found))


COMMANDS: dict[str, Callable[..., None]] = {"report": report, "page": page, "explain": explain, "figures": figures}
