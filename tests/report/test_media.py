"""What users write reaches each medium as they wrote it: figures, LaTeX, Markdown, HTML, CSV, terminal, file names."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from wcwidth import wcswidth

from peftbench import api
from peftbench.cli.progress import Terminal
from peftbench.errors import UserError
from peftbench.report import assemble
from peftbench.report.figures import curves, plots, quality, style
from peftbench.report.media import figure, filename, latex, markdown, plain, sheet, terminal
from tests.helpers import factories
from tests.helpers.odd_names import EXPERIMENT, LABELS, SCRIPTS, SPECIAL, TASKS

TAGS = {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "em", "a", "img", "code"}
TAGS |= {"pre", "strong", "details", "summary"}
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Records of two tasks whose names differ in one sign, with a method for each odd label; one of them failed."""
    folder, failed = tmp_path_factory.mktemp("odd"), SPECIAL[0]
    labels = ["full", *LABELS]
    bodies = [factories.profile(labels, task=task, experiment=EXPERIMENT, work=True) for task in TASKS]
    for task in TASKS:
        for i, label in enumerate(labels):
            method = factories.method_spec(label, hyper={"rank": i + 1})
            facts = {"task": task, "experiment": EXPERIMENT, "method": method}
            if label == failed:
                bodies.append(factories.run(label, 0, status="error", reason="\x1b[31mno\nroom", **facts))
            else:
                bodies.extend(factories.run(label, seed, 0.6 + 0.01 * i + 0.002 * seed, **facts) for seed in (0, 1))
    factories.write_all(folder, bodies)
    return folder


@pytest.fixture(scope="module")
def report(folder) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return api.report(folder).write().parent


@pytest.fixture
def no_figures(monkeypatch):
    """Reports with tables alone, which take no time to draw."""
    monkeypatch.setattr(plots, "figures", lambda c, looks: iter(()))


@pytest.mark.slow
def test_two_tasks_have_two_sets_of_files(report):
    names = [p.name for p in report.rglob("*") if p.is_file() and p.name.startswith("_exp")]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name) for name in names)
    titles = {plain_html(p.read_text().splitlines()[0]) for p in (report / "tables").glob("*.md")}
    assert {f"# {task}" for task in TASKS} <= titles


def plain_html(text: str) -> str:
    """Markdown of one line without its escapes."""
    return html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text))


@pytest.mark.slow
def test_every_name_is_read_back_from_the_markdown_page_and_from_the_html_made_of_it(report):
    rendered = _rendered((report / "report.md").read_text())
    for name in (*LABELS, *TASKS):
        assert _shown(name) in _text(rendered)
    tags = set(re.findall(r"<(\w+)", rendered))
    assert tags <= TAGS
    links = re.findall(r'(?:href|src)="([^"]*)"', rendered)
    assert links
    assert all(re.match(r"verdict\.json$|(tables|figures)/[A-Za-z0-9._-]+$|#", link) for link in links)
    assert all((report / link).is_file() for link in links if not link.startswith("#"))
    anchors = {f"#{name}" for name in re.findall(r'<a id="([A-Za-z0-9._-]+)">', rendered)}
    assert anchors == {link for link in links if link.startswith("#")}, "the contents name every section"
    cells = {len(re.findall(r"<t[dh][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", rendered, re.S)}
    assert min(cells) > 4, "no pipe of a name makes a cell"
    assert not CONTROL.search((report / "report.md").read_text())


def _rendered(page: str) -> str:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(page)


def _text(rendered: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", rendered)))


def _shown(name: str) -> str:
    return re.sub(r"\s+", " ", plain.visible(name).strip())


@pytest.mark.parametrize(
    "name", [*LABELS, *TASKS, "# a #", "1. b", "- c", "> d", "---", "[e]: http://x", "C#", ":a:b:"]
)
def test_a_name_is_itself_in_the_html_of_both_dialects_of_markdown(name):
    from markdown import Markdown
    from markdown_it import MarkdownIt

    ours = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])
    docs = Markdown(extensions=["tables", "fenced_code", "toc", "attr_list"])
    escaped = markdown.escape(name)
    page = f"## {escaped}\n\n{escaped}\n\n- {escaped}\n\n| {escaped} | b |\n|---|---|\n| {escaped} | c |\n"
    for rendered in (ours.render(page), docs.reset().convert(page)):
        assert _text(rendered).count(_shown(name)) == 5
        assert set(re.findall(r"<(\w+)", rendered)) <= TAGS - {"a", "img", "em", "strong", "code", "pre"}
        assert len(re.findall("<t[hd][ >]", rendered)) == 4


def test_prompts_and_answers_stand_in_the_page_as_code(tmp_path, no_figures):
    sample = {
        "prompt": "<img src=x> ![a](b)\n# no\x1b[2J",
        "prediction": "`x`\r\n- y",
        "reference": "</pre>",
    }
    factories.write_all(tmp_path, [factories.run("lora", 0, samples=[sample])])
    rendered = _rendered(api.report(tmp_path).write().read_text())
    (code,) = re.findall(r"<pre><code>(.*?)</code></pre>", rendered, re.S)
    assert html.unescape(code).splitlines()[:2] == ["prompt: <img src=x> ![a](b)", r"# no\x1b[2J"]
    assert "reference: </pre>" in html.unescape(code)


@pytest.mark.slow
def test_every_label_is_read_back_from_csv_and_none_is_a_formula(report):
    for path in (report / "tables").glob("*.csv"):
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        assert not CONTROL.search(path.read_text())
        labels = [row["method"] for row in rows]
        judged = LABELS if "--sensitivity" not in path.name else [n for n in LABELS if n != SPECIAL[0]]  # it failed
        assert all(plain.visible(label) in {text.removeprefix("'") for text in labels} for label in judged), path
        texts = [value for row in rows for value in row.values() if value.strip()[:1] in tuple("=+-@")]
        assert all(float(value) is not None for value in texts)


@pytest.mark.parametrize("value", ["=1", " =1", "+a", "-a", "@a", "\t=1", "\r=1", "＝1", "-1_0", "+1+1"])
def test_what_would_be_a_formula_is_text(value):
    assert sheet.cell(value).startswith("'") or not sheet.cell(value).lstrip().startswith(tuple("=+-@＝"))


@pytest.mark.parametrize("value", [-1, -1.5, "-1", "+2.5e-3", None, True, "a-b", "1=1"])
def test_a_number_stays_a_number(value):
    assert sheet.cell(value) == value


@pytest.mark.slow
def test_a_terminal_gets_no_control_characters_and_columns_that_line_up(folder):
    text = api.report(folder).table()
    assert not CONTROL.search(text)
    assert max(map(wcswidth, text.splitlines())) <= 120
    table = text.split("\n\n")[0].splitlines()
    rows = [line for line in table if re.search(r" 0$", line)]
    assert len(rows) >= len(LABELS) - 2, "but those whose last column is broken or a failure"
    assert len(set(map(wcswidth, rows))) == 1
    assert "漢字 分類" in text


@pytest.mark.slow
def test_errors_and_progress_show_control_characters_as_escapes(tmp_path):
    asked = '{name: "a\\e[31mb", methods: [lora], tasks: [glue/rte], budget: {steps: 1}, oops\\e[2J: 1}'
    (tmp_path / "x.yaml").write_text(asked.replace("oops\\e[2J", '"oops\\e[2J"'))
    command = [sys.executable, "-m", "peftbench", "plan", str(tmp_path / "x.yaml")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ran.returncode == 2
    assert "oops" in ran.stderr
    assert not CONTROL.search(ran.stderr + ran.stdout)


def test_the_live_view_of_a_terminal_prints_no_escape_code_of_a_name():
    out = io.StringIO()
    view = Terminal(out)
    view.note("\x1b[2Jnote\nof two lines")
    view.close()
    assert r"\x1b[2Jnote" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()


def test_json_of_names_has_no_control_characters_and_says_the_same():
    rows = [*LABELS, "\x9b31m", "\u202eabc", "\ud800"]
    text = terminal.json_lines(json.dumps(rows, ensure_ascii=False, indent=2))
    assert json.loads(text) == rows
    assert not CONTROL.search(text)
    assert text.encode()


@pytest.mark.parametrize("name", LABELS)
def test_latex_of_a_name_has_no_special_character_and_no_raw_unicode_outside_its_command(name):
    written = latex.escape(name)
    rest = re.sub(r"\\unicodetext\{[^{}]*\}\{U\+[0-9A-F +U]*\}", "", written)
    assert rest.isascii()
    assert not re.search(r"(?<!\\)[#%&_~|\"<>`^]", re.sub(r"\\[`'^~=u.\"rHvc]\{\\?\w\}|\\`\{\}", "", rest))
    assert rest.count("{") - rest.count(r"\{") == rest.count("}") - rest.count(r"\}")
    assert not written.lstrip().startswith(("[", "*")), r"an option of the \\ above"


@pytest.mark.slow
def test_every_figure_is_a_picture_and_xml_that_is_well_formed(report):
    figures = list((report / "figures").glob("*.svg"))
    assert len(figures) > 2 * 4
    for path in figures:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.full
@pytest.mark.slow
def test_a_terminal_that_lacks_a_character_gets_an_escape():
    command = [sys.executable, "-m", "peftbench", "methods", "lora"]
    ran = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_notebook_takes_no_name_for_mathematics_or_a_tag(tmp_path):
    factories.write_all(tmp_path, [factories.run("<b>$x^2$", 0), factories.run("$y$", 0)])
    page = api.report(tmp_path)._repr_html_()
    assert "&lt;b&gt;$x^2$" in page
    assert "tex2jax_ignore" in page


@pytest.mark.slow
def test_the_latex_tables_say_what_they_need(report):
    (table, *_) = [p.read_text() for p in sorted((report / "tables").glob("*.tex"))]
    assert table.startswith("% needs ")
    assert r"\setmainfont" in table
    assert r"\providecommand{\unicodetext}" in table
    assert not CONTROL.search(table)
    assert not latex.preamble(["plain ± déjà ε"])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_latex_tables_compile_in_an_article_of_two_columns(report, tmp_path):
    tables = "\n".join(f"\\input{{{path}}}" for path in sorted((report / "tables").glob("*.tex")))
    head = "\\documentclass[twocolumn]{article}\\usepackage{booktabs}\\usepackage{graphicx}"
    (tmp_path / "a.tex").write_text(f"{head}\n\\begin{{document}}\n\\listoftables\n{tables}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    for _ in range(2):  # the second time it reads the list of tables that it wrote
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
        assert ran.returncode == 0, ran.stdout.decode(errors="replace")[-1500:]
    assert b"Overfull \\hbox" not in ran.stdout


@pytest.mark.slow
def test_figures_show_every_name_and_leave_out_none(folder):
    c = assemble.load(folder).comparisons[0]
    with style.drawing([c.title, *LABELS]):
        drawn = curves.draw(c, style.looks([c]))
        texts = [t.get_text() for t in drawn.axes[0].get_legend().get_texts()]
        expected = {figure.literal(label) for label in LABELS}
        assert expected <= {text.removesuffix(" (failed)") for text in texts}
        points = quality.draw(c, quality.FIGURES["quality-vs-trainable"], style.looks([c]))
        keys = {t.get_text().removesuffix(" (failed)") for t in points.axes[0].get_legend().get_texts()}
        assert figure.literal("=1+1") in keys
        shown = [t for t in drawn.findobj(Text) if "$" in t.get_text()]
        assert shown
        assert all(t._preprocess_math(t.get_text())[1] in (False, "TeX") for t in shown)


@pytest.mark.parametrize("text", ["$_{", r"\$", "$x^2$", r"a\\$b", "$$", "no dollar", r"\alpha"])
def test_a_text_in_a_figure_is_as_it_was_written(text):
    drawn = Figure().text(0, 0, figure.literal(text))
    assert drawn._preprocess_math(drawn.get_text()) == (text, False)


@pytest.mark.slow
def test_a_character_without_a_font_is_its_code_point_and_the_report_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(figure, "_installed", list)
    factories.write_all(tmp_path, [factories.run(name, 0, 0.7 + i / 100) for i, name in enumerate(["漢字", "日本"])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = api.report(tmp_path).write().read_text()
    assert page.count("No font installed here has 字 日 本 漢") == 1
    assert not [r for r in caplog.records if r.name.startswith("matplotlib")]
    with style.drawing(["漢字"]):
        assert figure.literal("漢字 of 2") == "U+6F22 U+5B57 of 2"


def test_a_font_that_has_the_characters_is_a_fallback(monkeypatch):
    monkeypatch.setattr(figure, "_installed", lambda: ["A", "B", "C"])
    known = {"A": "漢", "B": "漢字", "C": "😀"}
    has = {name: frozenset(map(ord, text)) for name, text in known.items()}
    monkeypatch.setattr(figure, "_characters", lambda name: has.get(name, frozenset(range(0x2000))))
    assert figure._fallbacks(list("漢字😀🎉")) == ["B", "C"]
    assert figure.missing_note(["a 漢字 😀 🎉"]).startswith("No font installed here has 🎉:")
    assert not figure.missing_note(["déjà"])


@pytest.mark.slow
def test_figures_are_pdf_files_too_where_that_is_asked_for_and_the_same_each_time(tmp_path):
    factories.write_all(tmp_path, [factories.run("lora", 0), factories.run("full", 0)])
    api.report(tmp_path).write(tmp_path / "a", pdf=True)
    made = {p.name: p.read_bytes() for p in (tmp_path / "a/figures").glob("*.pdf")}
    assert made
    assert all(content.startswith(b"%PDF") and b"CreationDate" not in content for content in made.values())
    assert api.report(tmp_path).check(tmp_path / "a", pdf=True) == []
    api.report(tmp_path).write(tmp_path / "a")
    assert not list((tmp_path / "a/figures").glob("*.pdf"))


def test_columns_are_chosen_by_name_and_one_that_is_not_there_is_refused(tmp_path, no_figures):
    factories.write_all(tmp_path, [*factories.grid(("lora", "full"), 2), factories.profile(("lora", "full"))])
    report = api.report(tmp_path)
    page = report.write(columns=["memory", "score"])
    (table,) = (p for p in (page.parent / "tables").glob("*type.tex"))
    assert r"method & peak MiB & accuracy $\uparrow$ \\" in table.read_text()
    assert "| method | peak memory, MiB | accuracy" in re.sub(r" +", " ", page.read_text())
    assert report.table(["trainable"]).splitlines()[2].split() == ["method", "trainable"]
    assert "stored_bytes" in (table.with_suffix(".csv")).read_text()
    with pytest.raises(UserError, match="unknown column 'scores'; did you mean 'score'"):
        report.write(columns=["scores"])


def test_a_latex_table_has_no_column_without_a_value(tmp_path, no_figures):
    factories.write_all(tmp_path, [factories.run("lora", 0), factories.run("full", 0)])
    page = api.report(tmp_path).write()
    table = (page.parent / "tables/quickstart--embedded_question_type.tex").read_text()
    assert "step, ms" in page.read_text()
    assert not {"step, ms", "latency, batch 1, ms"} & set(table.replace(" (", " & ").split(" & "))
    assert "peak MiB" in table
    page = api.report(tmp_path).write(columns=["all"])
    whole = (page.parent / "tables/quickstart--embedded_question_type.tex").read_text()
    assert "peak memory, MiB" in whole
    assert "stored, KiB" in whole
    caption = table.split("\\caption{")[1].split("}\n")[0]
    assert len(caption) < 180, "two lines"
    assert table.index("\\bottomrule") < table.index("\\parbox"), "notes stand below"


@pytest.mark.parametrize(("behind", "dots"), [(0.0, 0), (0.4, 1)])
@pytest.mark.parametrize("majority", [0.23, 0.9], ids=["learned", "not learned"])
def test_a_dot_tells_something_or_words_say_that_there_is_none(tmp_path, no_figures, behind, dots, majority):
    scores = {"full": (0.70, 0.72, 0.71), "lora": (0.71 - behind, 0.71 - behind, 0.70 - behind)}
    runs = [(name, seed, score) for name, of_name in scores.items() for seed, score in enumerate(of_name)]
    factories.write_all(tmp_path, [factories.run(*run, majority=majority) for run in runs])
    report = api.report(tmp_path)
    page, table = report.write(), report.table()
    latex_table = page.parent / "tables/quickstart--embedded_question_type.tex"
    assert sum("•" in line for line in table.splitlines() if line.startswith(("full", "lora"))) == dots
    for text in (table, page.read_text(), latex_table.read_text()):
        assert (
            re.search("(No configuration|none) can be told apart from the best", " ".join(text.split())) is None
        ) == dots


def test_labels_sort_by_the_numbers_in_them(tmp_path):
    labels = [f"r{n}" for n in (2, 4, 10, 16, 100)]
    factories.write_all(tmp_path, [factories.run(label, 0) for label in reversed(labels)])
    (c,) = assemble.load(tmp_path).comparisons
    assert [e.label for e in c.entries] == labels
    tasks = ["t1", "t2", "t10"]
    factories.write_all(tmp_path / "b", [factories.run("lora", 0, task=task) for task in reversed(tasks)])
    assert [c.task for c in assemble.load(tmp_path / "b").comparisons] == tasks


@pytest.mark.parametrize(
    "pair",
    [
        ("age<30", "age>30"), ("a/b", "a_b"), ("Tom", "tom"), ("x" * 300 + "1", "x" * 300 + "2"), ("é", "e\u0301"),
        ("average", "a"), ("a--differences", "a"), ("con", "CON"), ("", " "), ("..", "."), ("\u212a", "K"),
    ],
)  # fmt: skip
def test_two_names_are_two_files_on_every_file_system(pair):
    stems = {i: (filename.stem("exp", name), name) for i, name in enumerate(pair)}
    stems[2] = (filename.stem("exp", ending="average"), "average")
    names = list(filename.apart(stems).values())
    files = [f"{n}{end}" for n in names for end in (".md", "--differences.md", "--expected-best.csv")]
    assert len({unicodedata.normalize("NFC", f).casefold() for f in files}) == len(files)
    assert all(len(f) < 200 and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", f) for f in files)


@pytest.mark.parametrize("name", ["con", "NUL", "com1.x", ".hidden", "-rf", "a\x00b", "a\nb", "a:b", "trailing. "])
def test_an_experiment_of_any_name_has_a_safe_file(name):
    stem = filename.stem(name, "task")
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", stem)
    assert stem.partition(".")[0].upper() not in ("CON", "NUL", "COM1")


def test_a_name_keeps_its_file_whatever_else_is_in_the_report():
    assert filename.stem("quickstart", "embedded/question_type") == "quickstart--embedded_question_type"
    assert filename.stem("e", "age<30") == filename.stem("e", "age<30") != filename.stem("e", "age>30")


@pytest.mark.slow
def test_names_of_hundreds_of_characters_leave_room_for_the_figure(tmp_path):
    labels = ["L" * 400, "漢" * 200, "x" * 99 + "1", "x" * 99 + "2"]
    runs = [factories.run(label, 0, task="t" * 300, experiment="e" * 300) for label in labels]
    factories.write_all(tmp_path, runs)
    (c,) = assemble.load(tmp_path).comparisons
    with style.drawing([c.title, *labels]):
        drawn = curves.draw(c, style.looks([c]))
    (panel,) = drawn.axes
    legend = panel.get_legend().get_window_extent(drawn.canvas.get_renderer())
    assert panel.get_window_extent().width > 200, "pixels"
    assert legend.x1 <= drawn.bbox.x1
    assert len({t.get_text() for t in panel.get_legend().get_texts()}) == 4
    assert api.report(tmp_path).table()


def test_long_names_that_begin_alike_differ_in_figures():
    names = [f"a-rather-long-prefix-of-a-label-{i}" for i in range(12)]
    assert len(set(plain.shortened(names, 20).values())) == 12


def test_long_names_that_begin_and_end_alike_differ_in_figures():
    names = [f"a-rather-long-prefix-of-a-label-{i}-{j}-and-a-long-end-of-it" for i in range(12) for j in "ab"]
    for longest in (9, 20, 48):
        short = plain.shortened(names, longest).values()
        assert len(set(short)) == 24
        assert max(map(len, short)) <= longest


def test_every_script_has_the_width_that_a_terminal_gives_it():
    assert [terminal.width(name) for name in SCRIPTS.values()] == [20, 8, 6, 9, 9, 8]
    assert all(terminal.width(terminal.padded(name, 40)) == 40 for name in SCRIPTS.values())
