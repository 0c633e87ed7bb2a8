"""Files of a report: what a killed process left of them, and what a stranger's folder makes of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import factories
import pytest

from peftbench import api
from peftbench.errors import UserError
from peftbench.estimate import tables as estimate_tables
from peftbench.records import scratch
from peftbench.report import assemble
from peftbench.report.figures import memory_bars, plots
from peftbench.report.papers import _build
from peftbench.report.write import files, up_to_date
from peftbench.run.lock import NAME, hold

OWN = "figures/e--a.svg"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of a report without figures, which take time to draw."""
    monkeypatch.setattr(plots, "figures", lambda c, looks: iter(()))
    factories.write_all(tmp_path / "r", [factories.run("lora", 0)])
    return tmp_path / "r"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of someone's own files, which have names that reports have, too."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("thesis.md", "report.md", "files.txt", ".digest", "e--a.md", "estimate.md", ".1-0f.tmp"):
        (folder / name).write_text("mine")
        os.utime(folder / name, (0, 0))
    return folder


def untouched(victim: Path) -> bool:
    return len(list(victim.iterdir())) == 7 and all(path.read_text() == "mine" for path in victim.iterdir())


def test_the_next_report_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    files.write(tmp_path / "report", [(OWN, b"whole")])
    owner = re.sub(r"-\d+-\d+-$", "-1-0-", scratch._owner())
    left = [tmp_path / "report" / f".{owner}ab.tmp", tmp_path / "report" / "figures" / f".{owner}ab.tmp"]
    for path in left:
        path.write_text("half")
    files.write(tmp_path / "report", [(OWN, b"whole")])
    assert not [path for path in left if path.exists()]


@pytest.mark.slow
@pytest.mark.parametrize("does", ["write", "check", "refresh"])
@pytest.mark.parametrize("link", ["report", "report/tables", "report/figures"])
@pytest.mark.parametrize("target", ["victim", "nowhere", "itself"])
def test_a_link_in_place_of_a_folder_of_the_report_is_refused_and_its_target_stays(
    results: Path, victim: Path, link: str, does: str, target: str
) -> None:
    (results / link).parent.mkdir(exist_ok=True)
    (results / link).symlink_to(results / link if target == "itself" else victim.parent / target)
    if link != "report":
        (results / "report/files.txt").write_text("tables/thesis.md\ntables/e--a.md\nfigures/e--a.svg\n")
    report, loaded = api.report(results), assemble.load(results)
    calls = {"write": report.write, "check": report.check, "refresh": lambda: assemble.refresh(results, loaded)}
    with pytest.raises(UserError, match=rf"{link}: a symbolic link.*[Rr]emove.*--out"):
        calls[does]()
    assert untouched(victim)
    assert not (victim.parent / "nowhere").exists()


def test_a_folder_that_the_user_names_may_be_a_link_and_none_inside_it(results: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    api.report(results).write(tmp_path / "out")
    assert (tmp_path / "disk/report.md").is_file()
    assert not api.report(results).check(tmp_path / "out")
    (results.parent / "linked").symlink_to(results)
    assert api.report(results.parent / "linked").write().is_file(), (
        "nor is the results directory of the report's making"
    )
    (tmp_path / "out/figures").symlink_to(results)
    with pytest.raises(UserError, match="out/figures: a symbolic link"):
        api.report(results).write(tmp_path / "out")


def test_a_link_in_place_of_a_file_is_replaced_and_its_target_stays(results: Path, victim: Path) -> None:
    page = api.report(results).write()
    table = next((page.parent / "tables").glob("*.md"))
    for path in (page, table, page.with_name("files.txt"), page.with_name(".digest")):
        path.unlink()
        path.symlink_to(victim / page.name)
    api.report(results).write()
    assert untouched(victim)
    assert not any(path.is_symlink() for path in page.parent.rglob("*"))
    assert not api.report(results).check()


@pytest.mark.parametrize(
    "name",
    ["thesis.md", "tables/thesis.md", "tables/../thesis.md", "../thesis.md", "figures/e--a.docx", "tables/sub/e--a.md",
     ".digest", "tables", "", "/etc/e--a.md", "tables/.e--a.md", "tables//e--a.md", "./report.md", "a\0b",
     "runs/e--a.md",
     "tables/e--a.md\r", "tables\\e--a.md"],
)  # fmt: skip
def test_only_names_of_a_report_are_removed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "report"
    kept = [
        folder / "thesis.md",
        folder / "tables/thesis.md",
        folder / "figures/e--a.docx",
        folder / "tables/sub/e--a.md",
    ]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (folder / "files.txt").write_bytes(f"{name}\ntables/e--a.md\n".encode())
    (folder / "tables/e--a.md").write_text("an earlier report's")
    assert files.listed(folder) == {"tables/e--a.md"}
    files.write(folder, [("report.md", b"new")])
    assert all(path.read_text() == "mine" for path in kept)
    assert not (folder / "tables/e--a.md").exists()


NO_LISTS: dict[str, Callable[[Path], object]] = {
    "other bytes": lambda path: path.write_bytes(b"\xff\xfe\n"),
    "NUL": lambda path: path.write_bytes(b"a\0b\n\0"),
    "a pipe": os.mkfifo,
    "no end": lambda path: path.symlink_to("/dev/zero"),
    "a gigabyte": lambda path: (path.touch(), os.truncate(path, 2**30)),
    "a link round": lambda path: path.symlink_to(path),
    "unreadable": lambda path: (path.touch(), path.chmod(0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["files.txt", ".digest"])
@pytest.mark.parametrize("what", NO_LISTS)
def test_what_is_no_list_and_no_digest_is_no_earlier_report(results: Path, name: str, what: str) -> None:
    api.report(results).write()
    path, loaded = results / "report" / name, assemble.load(results)
    path.unlink()
    NO_LISTS[what](path)
    assert not up_to_date.is_current(results / "report", loaded.sources)
    assert assemble.refresh(results, loaded).is_file()
    assert up_to_date.is_current(results / "report", loaded.sources)


@pytest.mark.parametrize("name", ["files.txt", ".digest", "report.md"])
def test_a_folder_in_place_of_a_file_is_one_message(results: Path, name: str) -> None:
    (results / "report" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="could not be written"):
        api.report(results).write()


@pytest.mark.parametrize("what", ["a pipe", "no end", "a gigabyte"])
def test_what_stands_in_place_of_a_file_of_the_report_is_not_read(results: Path, what: str) -> None:
    page = api.report(results).write()
    page.unlink()
    NO_LISTS[what](page)
    assert any(line.startswith("report.md: ") for line in api.report(results).check())
    assert not up_to_date.is_current(page.parent, assemble.load(results).sources)


@pytest.mark.parametrize("link", ["paper-figures", "paper-figures.md"])
def test_the_papers_figures_follow_no_link_inside_their_folder(tmp_path: Path, victim: Path, link: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "docs" / link).symlink_to(victim if "." not in link else victim / "report.md")
    if "." in link:
        _build.write((), tmp_path / "results", tmp_path / "docs")
        assert not (tmp_path / "docs" / link).is_symlink()
    else:
        with pytest.raises(UserError, match="docs/paper-figures: a symbolic link"):
            _build.write((), tmp_path / "results", tmp_path / "docs")
    assert untouched(victim)


def test_a_table_of_estimates_replaces_a_link_and_its_target_stays(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_bars, "draw", lambda *args: {})
    monkeypatch.setattr(estimate_tables, "rows", lambda *args: [{"method": "lora"}])
    monkeypatch.setattr(estimate_tables, "table", lambda *args: "new")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/estimate.md").symlink_to(victim / "estimate.md")
    estimate_tables.write(tmp_path / "out", [_Estimate()], {}, "full")  # type: ignore[list-item]
    assert untouched(victim)
    assert (tmp_path / "out/estimate.md").read_text() == "new\n"


class _Estimate:
    """As much of an estimate as the title has."""

    model = "m"

    class setting:
        batch, seq, dtype = 1, 1, "float32"


def test_the_lock_of_a_run_follows_no_link(results: Path, victim: Path) -> None:
    (results / NAME).symlink_to(victim / "thesis.md")
    with pytest.raises(UserError, match="cannot be written"), hold(results):
        pass
    assert untouched(victim)
