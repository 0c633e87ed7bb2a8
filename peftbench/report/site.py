"""Pages for a browser beside a report: one of a results directory, or a site of several with an index of verdicts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from peftbench.errors import UserError
from peftbench.records import packs, record
from peftbench.report import assemble
from peftbench.report.assemble import FOLDER, ReportData
from peftbench.report.media import filename
from peftbench.report.web import index
from peftbench.report.web.page import NAME
from peftbench.report.write import files


@dataclass(frozen=True)
class Written:
    """What was written: the page or the index, and the directories without records, which are left out."""

    path: Path
    left_out: tuple[Path, ...] = ()


def write_page(results_dir: Path, out: Path | None = None) -> Written:
    """Write the page of one results directory.

    Args:
        results_dir: the results directory.
        out: the file; default: `report/index.html` in the results directory.

    Raises:
        UserError: without records, if `out` is a folder, or if the file cannot be written.
    """
    path = results_dir / FOLDER / NAME if out is None else out
    if path.is_dir():
        raise UserError(f"--out {path}: a folder; name the file of the page, such as {path / NAME}")
    if out is None:
        files.refuse_links(path.parent, results_dir)
    content = assemble.page(results_dir, _runs(results_dir, path.parent))
    _replace(path, content)
    return Written(path)


def write(results_dirs: Sequence[Path], out: Path, *, linked: bool = True) -> Written:
    """Write a page for each results directory, and an index that lists them with their verdicts.

    Args:
        results_dirs: the results directories; those without records are left out.
        out: the folder of the site.
        linked: whether records are links, to their place on this disk, and not names alone.

    Raises:
        UserError: if none has records, or the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: no folder; several results make a folder of pages")
    loaded = {folder: assemble.load(folder) for folder in dict.fromkeys(results_dirs)}
    kept = {folder: data for folder, data in loaded.items() if data.comparisons or data.passes or data.tunings}
    if not kept:
        raise UserError(f"{', '.join(map(str, results_dirs))}: no records of runs there. Name results directories.")
    names = _names(kept)
    for folder, data in kept.items():
        _replace(out / names[folder], assemble.page(folder, _runs(folder, out) if linked else "", data))
    _replace(out / NAME, index.build([index.Entry(names[f], f.name, assemble.shown(d)) for f, d in kept.items()]))
    return Written(out / NAME, tuple(folder for folder in loaded if folder not in kept))


def _names(kept: Mapping[Path, ReportData]) -> dict[Path, str]:
    """A file name for each directory, from its own name."""
    stems = {folder: filename.stem(folder.resolve().name) for folder in kept}
    apart = filename.apart({f: (stem if stem != "index" else "index-1", str(f)) for f, stem in stems.items()})
    return {folder: f"{stem}.html" for folder, stem in apart.items()}


def _runs(results_dir: Path, place: Path) -> str:
    """The address of the records' folder as seen from a folder; "" if they are packed, as links lead into no pack."""
    if packs.are_there(results_dir):
        return ""
    return quote(Path(os.path.relpath((results_dir / record.FOLDER).resolve(), place.resolve())).as_posix())


def _replace(path: Path, content: bytes) -> None:
    with files.explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, content)
