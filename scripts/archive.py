"""Move superseded records to results/archive/: packed, and without their report.

python scripts/archive.py results/reference/NAME "Superseded by ..."
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import yaml

from peftbench.records import packs, record

ARCHIVE = Path(__file__).resolve().parent.parent / "results" / "archive"


def move(folder: Path, why: str) -> Path:
    """Archive a set: its records are packed, `about.yaml` says what superseded it, and the rest is removed."""
    runs, report = folder / "runs", folder / "report"
    if lost := [p for p in folder.rglob("*.json") if p.parent != runs and report not in p.parents]:
        raise SystemExit(f"{lost[0]}: no record in runs/, so it would be lost; nothing is moved")
    if folder.is_symlink() or not record.paths(folder):
        raise SystemExit(f"{folder}: no folder with records; nothing is moved")
    about = yaml.safe_load((folder / "about.yaml").read_text())
    record.read_all(folder)
    if any(runs.glob("*.json")):
        packs.write(runs)
    target = ARCHIVE / folder.name
    target.mkdir(parents=True)
    about["what"] = f"{why} {about['what']}"
    (target / "about.yaml").write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120))
    shutil.move(packs.of(runs), packs.of(target / record.FOLDER))
    shutil.rmtree(folder)
    return target


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="results/reference/NAME or results/paper/NAME")
    options.add_argument("why", help="one sentence: Superseded by ...")
    given = options.parse_args()
    print(move(given.folder, given.why))
