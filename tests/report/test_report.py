"""The files and texts of a report: everything named, nothing lost, the same bytes from the same records."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import factories
import pytest

from peftbench import cache
from peftbench.errors import UserError
from peftbench.records import record
from peftbench.report import assemble
from peftbench.report.figures import curves, placement, plots, point_labels, style
from peftbench.report.write import up_to_date

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = {"embedded/dialog_pairs": "glue/rte"}


@pytest.fixture
def no_figures(monkeypatch):
    """For tests of what else is written: figures take most of a report's time."""
    monkeypatch.setattr(plots, "figures", lambda comparison, looks: iter(()))


def test_a_method_with_only_failures_keeps_its_row_everywhere(tmp_path):
    bodies = [*factories.grid(["full", "lora"]), factories.run("dora", 0, status="diverged", reason="loss was NaN")]
    factories.write_all(tmp_path, bodies)
    row = next(r for r in assemble.rows(tmp_path) if r["method"] == "dora")
    assert (row["mean"], row["sd"], row["n"], row["failed"]) == (None, None, 0, 1)
    for path in assemble.write(tmp_path):
        if path.suffix in (".md", ".csv", ".tex"):
            assert "dora" in path.read_text(), path
        if path.suffix == ".svg":
            assert "dora" in path.read_text(), path  # named under the figure, or as the dashed curve's note
    text = assemble.text_table(tmp_path)
    assert "1 diverged" in text
    assert "loss was NaN" in text


@pytest.mark.slow
def test_every_table_of_an_average_names_the_tasks_and_their_stand_ins(tmp_path):
    tasks = {**STAND_IN, "embedded/movie_sentiment": None}
    factories.write_all(tmp_path, factories.grid(["full", "lora"], tasks=tasks))
    tables = [p for p in assemble.write(tmp_path) if "--average." in p.name]
    assert {p.suffix for p in tables} == {".md", ".csv", ".tex"}
    for path in tables:
        said = path.read_text().replace(r"\_", "_")
        assert "embedded/dialog_pairs (stand-in for glue/rte)" in said, path


@pytest.mark.slow
def test_a_task_that_was_not_learned_says_so_in_every_table_and_plot(tmp_path):
    bodies = [*factories.grid(["full", "lora"], score=0.505, majority=0.5), factories.profile(["full", "lora"])]
    factories.write_all(tmp_path, bodies)
    assert not any(r["learned"] for r in assemble.rows(tmp_path))
    words = "ot learned at this budget"
    assert words in assemble.text_table(tmp_path)
    for path in assemble.write(tmp_path):
        if path.suffix in (".md", ".tex", ".svg"):
            assert words in path.read_text(), path


def test_a_stand_in_never_bears_the_name_of_the_task_it_stands_in_for(tmp_path):
    factories.write_all(tmp_path, [*factories.grid(["full", "lora"], tasks=STAND_IN)])
    for path in assemble.write(tmp_path):
        if path.name in ("report.md", "files.txt"):
            continue
        if path.name == "verdict.json":
            assert '"task": "embedded/dialog_pairs (stand-in for glue/rte)"' in path.read_text()
            continue
        if path.name == "index.html":
            assert "embedded/dialog_pairs (stand-in for glue/rte)</h2>" in path.read_text()
            continue
        assert "embedded_dialog_pairs--stand-in-for-glue_rte" in path.name
        if path.suffix in (".md", ".svg"):
            assert "embedded/dialog_pairs (stand-in for glue/rte)" in path.read_text(), path
    assert "embedded/dialog_pairs (stand-in for glue/rte)" in assemble.text_table(tmp_path)
    row = assemble.rows(tmp_path)[0]
    assert (row["task"], row["stand_in_for"]) == ("embedded/dialog_pairs", "glue/rte")


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes_in_any_order(tmp_path):
    bodies = [*factories.grid(["full", "lora"]), factories.profile(["full", "lora"])]
    first = {p.name: p.read_bytes() for p in _report_of(tmp_path / "one", bodies)}
    random.Random(0).shuffle(bodies)
    assert {p.name: p.read_bytes() for p in _report_of(tmp_path / "two", bodies)} == first


def _report_of(directory, bodies):
    factories.write_all(directory, bodies)
    return assemble.write(directory)


@pytest.mark.slow
def test_the_page_shows_every_table_and_figure_and_nothing_else_is_linked(tmp_path):
    bodies = factories.grid(["full", "lora"], tasks={"embedded/a": None, **STAND_IN})
    for task, asked in {"embedded/a": None, **STAND_IN}.items():
        bodies.append(factories.profile(["full", "lora"], task=task, stand_in_for=asked))
    paths = _report_of(tmp_path, bodies)
    page = paths[0].read_text()
    for path in (p for p in paths[1:] if p.name != "index.html" and p.suffix != ".svg"):
        assert f"({path.relative_to(paths[0].parent).as_posix()})" in page, path
    assert {p.stem for p in paths if p.suffix == ".svg"} == {p.stem for p in paths if p.suffix == ".png"}
    figures = [p.stem.rpartition("--")[2] for p in paths if p.suffix == ".png"]
    names = {"quality-vs-trainable", "quality-vs-memory", "quality-vs-step-time", "quality-vs-latency", "loss"}
    assert set(figures) == names | {"summary"}
    assert len(figures) == 2 * len(names) + 3, "a summary of each task, and one over both"


def test_an_outdated_file_of_an_earlier_report_goes_and_a_users_file_stays(tmp_path, no_figures):
    one = _report_of(tmp_path, [factories.run("lora", 0)])
    mine = one[0].with_name("mine.txt")
    mine.write_text("keep")
    shutil.rmtree(tmp_path / "runs")
    _report_of(tmp_path, [factories.run("lora", 0, task="embedded/other")])
    assert mine.read_text() == "keep"
    assert not [p for p in one if p.exists() and "question_type" in p.name]


def test_a_report_that_cannot_be_written_says_where_and_keeps_the_records(tmp_path, no_figures):
    factories.write_all(tmp_path, [factories.run("lora", 0)])
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(UserError, match="report could not be written"):
        assemble.write(tmp_path)
    assert len(record.read_all(tmp_path)) == 1


def test_a_directory_without_runs_is_a_clear_error(tmp_path):
    for ask in (assemble.write, assemble.rows, assemble.text_table):
        with pytest.raises(UserError, match="no records of runs here"):
            ask(tmp_path)


@pytest.mark.parametrize("long", ["x" * 70, "lora(rank=8, alpha=16, roles=q k v o up down, dropout=0.05)"])
def test_terminal_text_fits_120_columns(tmp_path, long):
    method = factories.method_spec(long)
    bodies = [*factories.grid(), factories.profile(), factories.run(long, 0, method=method)]
    bodies += [
        factories.run(long, s, method=method, status=how) for s, how in enumerate(["oom", "error", "diverged"], 1)
    ]
    factories.write_all(tmp_path, [*bodies, *factories.grid(tasks={"embedded/b": None})])
    text = assemble.text_table(tmp_path)
    assert max(map(len, text.splitlines())) <= 120
    for needed in ("accuracy", "trainable", "failed", "peak MiB"):
        assert needed in text


def test_generated_text_is_shown_beside_its_further_metrics(tmp_path, no_figures):
    sample = {"prompt": "name[Aroma]\nfood[Thai]", "prediction": "Aroma | serves *Thai*", "reference": "Aroma is Thai."}
    more = {"bleu": 31.2, "rouge_l": 0.5}
    common = {"metric": "perplexity", "direction": "min", "majority": None, "others": more, "samples": [sample]}
    factories.write_all(tmp_path, [factories.run(label, 0, 8.0, **common) for label in ("full", "lora")])
    text = assemble.text_table(tmp_path)
    for needed in ("perplexity ↓", "bleu", "31.20", "rouge_l", "serves *Thai*"):
        assert needed in text
    assert "    prediction: Aroma | serves *Thai*" in assemble.write(tmp_path)[0].read_text()


def test_rows_are_json_with_every_promised_field(tmp_path):
    factories.write_all(tmp_path, [*factories.grid(), factories.profile()])
    (row,) = [
        r for r in json.loads(json.dumps(assemble.rows(tmp_path), allow_nan=False)) if r["method"] == "adapter-parallel"
    ]
    promised = "experiment task stand_in_for method metric mean sd n failed trainable peak_memory_bytes step_seconds"
    assert set(promised.split()) <= set(row)
    assert (row["method_name"], row["n"], row["trainable"]) == ("adapter", 2, 74_112)
    assert row["latency_seconds"]["1"] == {"unmerged": pytest.approx(0.00608), "merged": None,
                                           "unmerged_iqr": pytest.approx(0.000304), "merged_iqr": None}  # fmt: skip


def test_rows_and_csv_say_what_other_programs_used_meanwhile(tmp_path, no_figures):
    factories.write_all(tmp_path, [*factories.grid(seeds=1), factories.profile(others=0.25)])
    assert {r["others_cpu_share"] for r in assemble.rows(tmp_path)} == {0.25}
    (csv,) = [
        p for p in assemble.write(tmp_path) if p.suffix == ".csv" and "--" not in p.stem.replace("quickstart--", "")
    ]
    assert "others_cpu_share" in csv.read_text().partition("\n")[0]


def test_no_text_of_a_report_claims_that_a_pass_had_the_machine_to_itself(tmp_path, no_figures):
    factories.write_all(tmp_path, [*factories.grid(seeds=1), factories.profile()])
    page = " ".join(assemble.write(tmp_path)[0].read_text().split())
    assert "to itself" not in page
    assert "in which the methods take turns" in page


def test_text_from_records_cannot_break_a_table(tmp_path, no_figures):
    method = factories.method_spec("a|b_c&d%", hyper={"rank": 3})
    factories.write_all(tmp_path, [factories.run("a|b_c&d%", 0, 0.5, method=method)])
    paths = assemble.write(tmp_path)
    assert "a\\|b_c&d%" in next(p for p in paths if p.parent.name == "tables" and p.suffix == ".md").read_text()
    assert r"a\textbar{}b\_c\&d\% &" in next(p for p in paths if p.suffix == ".tex").read_text()


def test_a_failed_run_and_an_empty_curve_do_not_stop_the_report(tmp_path):
    nothing = factories.run("dora", 0, status="error") | {"curve": None, "parameters": None, "memory": None}
    exploded = factories.run("lora", 0, status="diverged")
    exploded["curve"]["loss"] = [1.0, 2.0, float("nan"), 3.0]
    paths = _report_of(tmp_path, [nothing, exploded])
    assert [p.name for p in paths if p.suffix == ".png"] == ["quickstart--embedded_question_type--loss.png"]


@pytest.mark.full
@pytest.mark.slow
def test_figures_are_the_same_bytes_whatever_style_the_user_has_set(tmp_path, monkeypatch):
    import matplotlib

    tasks = {"embedded/a": None, "embedded/b": None, **STAND_IN}
    bodies = factories.grid(["full", "lora"], tasks=tasks)
    bodies += [factories.profile(["full", "lora"], task=task, stand_in_for=asked) for task, asked in tasks.items()]
    factories.write_all(tmp_path, bodies)
    alone = assemble.write(tmp_path, tmp_path / "alone")
    monkeypatch.setitem(matplotlib.rcParams, "axes.titlepad", 40.0)
    together = assemble.write(tmp_path, tmp_path / "together")
    assert len([p for p in alone if p.suffix == ".png"]) == 19  # six a task, one over them
    assert [p.read_bytes() for p in alone] == [p.read_bytes() for p in together]
    assert [p.name for p in alone] == [p.name for p in together]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A written report with one figure, and a function that says whether refreshing draws it again."""
    monkeypatch.setattr(plots, "figures", lambda c, looks: iter([(f"{c.slug}--loss.png", b"a picture")]))
    factories.write_all(tmp_path, factories.grid(["full", "lora"]))
    assemble.write(tmp_path)

    def again():
        before = _times(tmp_path)
        assemble.refresh(tmp_path, assemble.load(tmp_path))
        after = _times(tmp_path)
        assert all(after.values()), "what was gone is there again"
        return after != before

    assert not again()
    return again


def _times(directory):
    paths = [*(directory / "report").rglob("*--loss.png"), directory / "report/report.md"]
    return {p: p.stat().st_mtime_ns if p.exists() else None for p in paths}


def _figure(directory):
    return next((directory / "report/figures").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda d: record.write(d, factories.run("dora", 0)),
        lambda d: next((d / "runs").iterdir()).unlink(),
        lambda d: _figure(d).write_bytes(b"a pictura"),
        lambda d: _figure(d).unlink(),
        lambda d: (d / "report/report.md").write_text(""),
        lambda d: (d / "report/files.txt").unlink(),
        lambda d: (d / "report/.digest").write_bytes(b"\xff"),
        lambda d: shutil.rmtree(d / "report"),
    ],
)
def test_a_report_is_drawn_again_when_its_records_or_its_files_changed(tmp_path, drawn, change):
    change(tmp_path)
    assert drawn()
    assert not drawn()


def test_a_report_is_drawn_again_when_what_draws_it_changed(tmp_path, drawn, monkeypatch):
    shutil.copytree(ROOT / "peftbench", tmp_path / "code")
    monkeypatch.setattr(cache, "ENGINE", tmp_path / "code")
    assert not drawn()
    with open(tmp_path / "code/report/figures/style.py", "a") as f:
        f.write("# another blue\n")
    assert drawn()
    monkeypatch.setattr(up_to_date, "version", lambda name: "99")
    assert drawn()


def test_a_report_that_is_asked_for_is_always_written(tmp_path, drawn):
    before = _times(tmp_path)
    assemble.write(tmp_path)
    assert all(after != before[path] for path, after in _times(tmp_path).items())


@pytest.mark.parametrize("count", [5, 60])
def test_the_legend_of_many_curves_stands_whole_beside_them(tmp_path, count):
    factories.write_all(tmp_path, [factories.run(f"lora-{i}", 0) for i in range(count)])
    (c,) = assemble.load(tmp_path).comparisons
    with style.drawing():
        figure = curves.draw(c, style.looks([c]))
    (panel,) = figure.axes
    legend = panel.get_legend().get_window_extent(figure.canvas.get_renderer())
    axes = panel.get_window_extent()
    assert axes.width > 400, "pixels"
    assert axes.x1 < legend.x0 < legend.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= legend.y0 < legend.y1 <= figure.bbox.y1


def test_a_line_ties_a_label_to_the_edge_of_its_marker():
    label = placement.Label(40.0, 0.0, placement.Box(125, 95, 155, 105), leader=True)
    (x0, y0), (x1, y1) = point_labels.leader((100.0, 100.0), label)
    assert (x0, y0, x1, y1) == pytest.approx((104, 100, 124, 100))
    above = placement.Label(0.0, 30.0, placement.Box(85, 125, 115, 135), leader=True)
    assert point_labels.leader((100.0, 100.0), above) == [pytest.approx((100, 104)), pytest.approx((100, 124))]


def test_no_label_of_eight_close_configurations_covers_another():
    rng = random.Random(3)
    points = [(200 + rng.uniform(-8, 8), 150 + rng.uniform(-25, 25)) for _ in range(8)]
    markers = [placement.Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    frame = placement.Box(0, 0, 450, 300)
    labels = placement.place(points, [(60.0, 12.0)] * 8, markers, frame)
    for i, label in enumerate(labels):
        assert label.box.overlap(frame) == pytest.approx(label.box.area)
        assert not any(label.box.overlap(o.box) for o in labels[:i])
        assert not any(label.box.overlap(m) for m in markers)


@pytest.mark.slow
def test_the_figures_leave_the_users_style_and_backend_alone(tmp_path):
    factories.write_all(tmp_path, [factories.run("lora", 0)])
    code = (
        "import sys, matplotlib\nbefore = dict(matplotlib.rcParams)\nfrom peftbench.report import assemble\n"
        "assemble.write(sys.argv[1])\nassert dict(matplotlib.rcParams) == before"
    )
    paths = {**os.environ, "PYTHONPATH": str(ROOT), "DISPLAY": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=paths, check=True)


def test_statistics_import_neither_torch_nor_pandas_nor_matplotlib():
    heavy = "{'torch', 'pandas', 'matplotlib', 'seaborn'}"
    code = f"import sys, peftbench.report.data.average; print(sorted({heavy} & set(sys.modules)))"
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", code], env=paths, text=True).strip() == "[]"


@pytest.mark.slow
def test_the_page_begins_with_what_follows_and_its_contents_and_folds_the_rest(tmp_path, no_figures):
    bodies = [*factories.grid(["full", "lora"]), factories.profile(["full", "lora"])]
    factories.write_all(tmp_path, bodies)
    page = assemble.write(tmp_path)[0].read_text()
    shown = re.sub(r"<details>.*?</details>", "", page, flags=re.S)
    assert page.index("What to take from quickstart") < page.index("Contents:") < page.index("## quickstart")
    (anchor,) = re.findall(r"\(#(quickstart--embedded_question_type)\)", page)
    assert f'<a id="{anchor}"></a>' in page
    assert "[95 %]" in shown
    for column in ("latency, batch 1", "stored, KiB", "sd over seeds"):
        assert column not in shown
        assert column in page, "nothing is lost"
    assert page.count("<details>") == page.count("</details>")
