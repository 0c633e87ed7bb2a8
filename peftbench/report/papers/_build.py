"""Discovers the figures, reproduces them from the records, and writes or checks their files."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from peftbench.errors import UserError, unknown
from peftbench.records import scratch
from peftbench.report import papers
from peftbench.report.papers import NotRun, PaperFigure, Results
from peftbench.report.papers._page import FOLDER, INDEX, FigureResult, image, index, page
from peftbench.report.write import files

SUFFIXES = (".md", ".png", ".svg")


def known() -> dict[str, PaperFigure]:
    """Every figure by name, in the order of the page; a module has the name of its figure."""
    figures = []
    for module in pkgutil.iter_modules(papers.__path__):
        if not module.name.startswith("_"):
            figure: PaperFigure = importlib.import_module(f"{papers.__name__}.{module.name}").FIGURE
            if figure.name != module.name:
                raise ValueError(f"{module.name}.py holds a figure named {figure.name}")
            figures.append(figure)
    return {f.name: f for f in sorted(figures, key=lambda f: (f.number, f.name))}


def chosen(names: Sequence[str]) -> list[PaperFigure]:
    """The figures of these names, or all without names. Raises UserError for an unknown name."""
    figures = known()
    for name in names:
        if name not in figures:
            raise unknown("figure", name, figures)
    return [f for f in figures.values() if not names or f.name in names]


def reproduce(figures: Sequence[PaperFigure], results: Results) -> list[FigureResult]:
    """Reproduce each figure, or state which records are missing."""
    answers = []
    for figure in figures:
        try:
            answers.append(FigureResult(figure, figure.reproduce(results)))
        except NotRun as e:
            answers.append(FigureResult(figure, None, str(e)))
    return answers


def reproduce_all(root: Path) -> list[FigureResult]:
    """Reproduce every figure.

    Args:
        root: the directory that holds the records, such as `results`.

    Raises:
        UserError: without such a directory.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; give the one that has the records, such as --results results")
    return reproduce(list(known().values()), Results(root))


def contents(names: Sequence[str], answers: Sequence[FigureResult]) -> Iterator[tuple[str, bytes | None]]:
    """Build the files of the chosen figures, and the index of all.

    Args:
        names: names of figures; empty for all.
        answers: the results of all figures.

    Returns:
        (path, content) of each file; None as content if the file must not exist.
    """
    wanted = {f.name for f in chosen(names)}
    for r in answers:
        if r.figure.name in wanted:
            yield f"{FOLDER}/{r.figure.name}.md", page(r).encode()
            drawn = dict(image(r))
            for suffix in SUFFIXES[1:]:
                name = r.figure.name + suffix
                yield f"{FOLDER}/{name}", drawn.get(name)
    yield INDEX, index(answers).encode()


def write(names: Sequence[str], root: Path, out: Path, answers: Sequence[FigureResult] | None = None) -> list[Path]:
    """Write the chosen figures and the index.

    Args:
        names: names of figures; empty for all.
        root: the directory that holds the records.
        out: the directory to write to.
        answers: the results of all figures if already computed.

    Returns:
        The paths that changed.

    Raises:
        UserError: the folder of the figures is a symbolic link.
    """
    changed = []
    files.refuse_links(out, out, [FOLDER])
    scratch.sweep(out, out / FOLDER)
    for name, content in contents(names, reproduce_all(root) if answers is None else answers):
        path = out / name
        if files.content(path) == content:
            continue
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(path, content)
        changed.append(path)
    return changed


def check(names: Sequence[str], root: Path, out: Path) -> list[str]:
    """Compare the files of the chosen figures with what the records give.

    Args:
        names: names of figures; empty for all.
        root: the directory that holds the records.
        out: the directory of the files.

    Returns:
        One line per file that differs.
    """
    differences, expected = [], set()
    files.refuse_links(out, out, [FOLDER])
    for name, content in contents(names, reproduce_all(root)):
        expected.add(name)
        now = files.content(out / name)
        if now != content:
            what = "is missing" if now is None else "must not be there" if content is None else "differs"
            differences.append(f"{out / name}: {what}")
    if not names:
        there = {f"{FOLDER}/{p.name}" for p in (out / FOLDER).glob("*")}
        differences += [f"{out / name}: belongs to no figure" for name in sorted(there - expected)]
    return differences
