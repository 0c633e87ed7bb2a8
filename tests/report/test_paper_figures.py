"""The papers' figures: what a module must have, pages and images, and that the same records give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories import write_all
from paper_records import flat, read_once, reproduced, roles_runs
from typer.testing import CliRunner

from peftbench.cli.app import app
from peftbench.errors import UserError
from peftbench.report.papers import (
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    WITHIN,
    Claim,
    NotRun,
    Reproduction,
    Results,
    Table,
    _build,
    lora_roles,
)

ROOT = Path(__file__).resolve().parents[2]


# The contract


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, REPRODUCED),
        (-0.1, 0.3, WITHIN),
        (0.3, 1.2, WITHIN),
        (-0.4, -0.1, NOT_REPRODUCED),
        (1.0, 1.5, NOT_REPRODUCED),
    ],
)
def test_a_claim_is_judged_by_where_its_interval_lies(low: float, high: float, verdict: str) -> None:
    assert Claim("", "", (low + high) / 2, low, high, above=0, below=1).verdict == verdict


def test_the_worst_claim_decides_and_an_unmet_condition_before_it() -> None:
    good, open_, bad = (Claim("", "", v, v, w, above=0) for v, w in ((1, 2), (-1, 1), (-2, -1)))

    def verdict(*claims: Claim, incomparable: str | None = None) -> str:
        return Reproduction("", claims, Table((), ()), lambda canvas: None, incomparable).verdict

    assert verdict(good) == REPRODUCED
    assert verdict(good, open_) == WITHIN
    assert verdict(good, open_, bad) == NOT_REPRODUCED
    assert verdict(good, bad, incomparable="nothing was learned") == NOT_COMPARABLE
    with pytest.raises(ValueError, match="no verdict"):
        verdict()


def test_no_figure_types_its_verdict() -> None:
    words = ("REPRODUCED", "WITHIN", "NOT_COMPARABLE", f'"{REPRODUCED}"', f'"{WITHIN}"', f'"{NOT_COMPARABLE}"')
    for figure in _build.known():
        source = (ROOT / "peftbench" / "report" / "papers" / f"{figure}.py").read_text()
        assert not [w for w in words if w in source], figure


@pytest.mark.parametrize("name", list(_build.known()))
def test_the_files_that_a_figure_names_exist_and_its_experiments_are_valid(name: str) -> None:
    from peftbench.plan import read

    for command in _build.known()[name].recipe:
        words = command.split()
        files = [w for w in words if w.endswith((".yaml", ".py"))]
        assert files, command
        for file in files:
            assert (ROOT / file).is_file(), command
            if file.endswith(".yaml"):
                experiment = read.load(ROOT / file)
                assert words[words.index("--results") + 1] == f"results/{_folder(name, experiment.name)}"


def _folder(figure: str, experiment: str) -> str:
    """The folder that the figure reads and whose last part is the experiment's name."""
    (folder,) = (f for f in _build.known()[figure].folders if f.split("/")[-1] == experiment)
    return folder


# Without records


def test_a_figure_without_records_says_so_with_the_command_that_makes_them(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    _build.write(["lora_rank"], tmp_path / "results", tmp_path / "docs")
    page = (tmp_path / "docs/paper-figures/lora_rank.md").read_text()
    assert NOT_RUN.capitalize() in page
    assert "python -m peftbench run experiments/paper/lora_rank.yaml --results results/paper/lora_rank" in page
    assert not (tmp_path / "docs/paper-figures/lora_rank.png").exists()
    index = (tmp_path / "docs/paper-figures.md").read_text()
    assert index.count(f"| {NOT_RUN} |") == len(_build.known())
    assert "![" not in index


def test_an_incomplete_sweep_is_not_run_and_names_what_is_missing(tmp_path: Path) -> None:
    scores = flat(0.8)
    del scores["q k"]
    with pytest.raises(NotRun, match="q k"):
        reproduced(lora_roles.FIGURE, tmp_path, roles_runs(scores))


def test_failed_runs_alone_are_no_records(tmp_path: Path) -> None:
    with pytest.raises(NotRun, match="no finished run"):
        reproduced(lora_roles.FIGURE, tmp_path, roles_runs(flat(0.8), status="diverged"))


def test_a_results_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        _build.write([], tmp_path / "nothing", tmp_path)


def test_an_unknown_figure_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="lora_rank"):
        _build.chosen(["lora_rnak"])


# Bytes


@pytest.fixture
def rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A results directory with one sweep, and where its figure was written."""
    results, docs = tmp_path / "results", tmp_path / "docs"
    read_once(monkeypatch)
    write_all(results / "paper/lora_roles", roles_runs({**flat(0.8), "q": 0.6}))
    _build.write([], results, docs)
    return results, docs


def test_drawing_again_changes_no_byte(rendered: tuple[Path, Path]) -> None:
    results, docs = rendered
    before = {p: p.read_bytes() for p in sorted(docs.rglob("*.*"))}
    assert {p.suffix for p in before} == {".md", ".png", ".svg"}
    assert _build.write([], results, docs) == []
    for path in (docs / "paper-figures").glob("*"):
        path.unlink()
    assert _build.write([], results, docs)
    assert {p: p.read_bytes() for p in sorted(docs.rglob("*.*"))} == before


def checked(results: Path, docs: Path, *names: str) -> Any:
    return CliRunner().invoke(app, ["figures", *names, "--check", "--results", str(results), "--out", str(docs)])


def test_check_passes_where_nothing_changed_and_writes_nothing(rendered: tuple[Path, Path]) -> None:
    results, docs = rendered
    times = {p: p.stat().st_mtime_ns for p in docs.rglob("*.*")}
    assert checked(results, docs).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in docs.rglob("*.*")} == times


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora_roles.md", "lora_roles.png", "lora_roles.svg"])
def test_check_names_a_file_that_was_edited(rendered: tuple[Path, Path], name: str) -> None:
    results, docs = rendered
    path = docs / "paper-figures" / name
    path.write_bytes(path.read_bytes() + b" ")
    outcome = checked(results, docs)
    assert outcome.exit_code == 1
    assert f"{path}: differs" in outcome.output


def test_check_names_missing_left_over_and_foreign_files(rendered: tuple[Path, Path]) -> None:
    results, docs = rendered
    folder = docs / "paper-figures"
    (folder / "lora_roles.png").unlink()
    (folder / "lora_rank.png").write_bytes(b"from earlier records")
    (folder / "gone.md").write_text("of a figure that is no more")
    said = checked(results, docs).output
    assert f"{folder / 'lora_roles.png'}: is missing" in said
    assert f"{folder / 'lora_rank.png'}: must not be there" in said
    assert f"{folder / 'gone.md'}: belongs to no figure" in said


def test_a_new_record_changes_the_page(rendered: tuple[Path, Path]) -> None:
    results, docs = rendered
    write_all(results / "paper/lora_roles", roles_runs(flat(0.5), seeds=4)[3::4])
    said = checked(results, docs, "lora_roles").output
    assert "lora_roles.md: differs" in said
    assert "lora_roles.png: differs" in said


def test_page_and_image_say_our_scale_and_the_verdict(rendered: tuple[Path, Path]) -> None:
    from matplotlib.figure import Figure

    from peftbench.report.papers._page import _frame

    results, docs = rendered
    for page in (docs / "paper-figures.md", docs / "paper-figures/lora_roles.md"):
        text = page.read_text()
        assert "**Reproduced.**" in text
        assert "Our run, not the paper's: minilm-l6 (23 million parameters), embedded/question_type, 40 steps" in text
        assert "arXiv:2106.09685" in text
    canvas, reproduction = Figure(), lora_roles.FIGURE.reproduce(Results(results))
    _frame(canvas, lora_roles.FIGURE, reproduction)
    assert "Our run, not the paper's: minilm-l6" in canvas.get_supxlabel().replace("\n", " ")
    assert f"verdict: {REPRODUCED}" in canvas.get_supxlabel().replace("\n", " ")


# The repository itself


@pytest.mark.full
@pytest.mark.slow
def test_committed_figures_are_what_the_committed_records_give() -> None:
    assert _build.check([], ROOT / "results", ROOT / "docs") == []
