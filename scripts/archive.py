"""Move superseded records to results/archive/: all of them in one compressed file, without their report.

    python scripts/archive.py results/reference/NAME "what has taken its place"

Nothing reads an archive but results/README.md. `tar -xJf runs.tar.xz` gives the records back, byte for byte.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
from pathlib import Path

import yaml

ARCHIVE = Path(__file__).resolve().parent.parent / "results" / "archive"
PACK = "runs.tar.xz"


def pack(runs: Path, target: Path) -> None:
    """Put the records of a folder into one file; the same records give the same bytes."""
    with tarfile.open(target, "w:xz", preset=9) as packed:
        for path in sorted(runs.glob("*.json")):
            member = tarfile.TarInfo(f"{runs.name}/{path.name}")
            member.size, member.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                packed.addfile(member, file)


def unpack(folder: Path, place: Path) -> Path:
    """Give the records of an archived set back in `place`."""
    with tarfile.open(folder / PACK) as packed:
        packed.extractall(place, filter="data")
    return place


def move(folder: Path, why: str) -> Path:
    """Archive a set: its records are packed, `about.yaml` says what superseded it, and the rest is removed."""
    runs, report = folder / "runs", folder / "report"
    if lost := [p for p in folder.rglob("*.json") if p.parent != runs and report not in p.parents]:
        raise SystemExit(f"{lost[0]}: no record in runs/, so it would be lost; nothing is moved")
    if folder.is_symlink() or not any(runs.glob("*.json")):
        raise SystemExit(f"{folder}: no folder with records; nothing is moved")
    about = yaml.safe_load((folder / "about.yaml").read_text())
    target = ARCHIVE / folder.name
    target.mkdir(parents=True)
    about["what"] = f"{why} {about['what']}"
    (target / "about.yaml").write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120))
    pack(runs, target / PACK)
    shutil.rmtree(folder)
    return target


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="results/reference/NAME or results/paper/NAME")
    options.add_argument("why", help="one sentence: Superseded by ...")
    given = options.parse_args()
    print(move(given.folder, given.why))
