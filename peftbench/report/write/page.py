"""Builds every file of a report: the page `report.md`, and the tables and figures that it shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from peftbench.report.data import answer, data_text, sensitivity
from peftbench.report.data.average import Average
from peftbench.report.data.axis_curves import AxisCurve
from peftbench.report.data.comparison import Comparison, constant_answer, in_digits, length
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.samples import first_sample
from peftbench.report.data.sensitivity import Sensitivity
from peftbench.report.data.tunings import Tuning
from peftbench.report.figures import names as figure_names
from peftbench.report.figures import plots, style
from peftbench.report.figures.style import Look
from peftbench.report.media.figure import missing_note
from peftbench.report.media.markdown import code_block, escape
from peftbench.report.media.plain import natural
from peftbench.report.tables import (
    answers,
    axis_tables,
    class_scores,
    conclusions,
    differences,
    export,
    forgetting,
    latency_page,
    sensitivity_page,
    step_costs,
    trials,
)
from peftbench.report.tables import columns as tables
from peftbench.report.web import page as web_page
from peftbench.report.write import navigation
from peftbench.report.write.navigation import folded
from peftbench.report.write.slugs import Shown, apart

THESIS = ("score", "trainable", "memory", "step")  # columns of a LaTeX table
OVERVIEW = ("score", "relative", "trainable", "memory", "step-ratio", "failed")  # columns; the others are folded
HEADINGS = {
    "summary": "Score and cost",
    "quality-vs-trainable": "Quality against trainable parameters",
    "quality-vs-memory": "Quality against peak training memory",
    "quality-vs-step-time": "Quality against the time of a training step",
    "quality-vs-latency": "Quality against inference latency",
    "loss": "Training loss",
    "confusion": "Confusion matrix",
    "expected-best": "Expected best validation score of k trials",
    "rates": "Validation score against learning rate",
}
OVER_TASKS = {"summary.png": "Score and cost over the tasks", "ranks.png": "Mean ranks over tasks"}
LEGEND = """\
Scores are on the test split: mean [95 % interval over seeds and test examples] (number of
seeds); • the best, and what cannot be told apart from it; ↑ higher is better, ↓ lower is better. Trainable parameters
do not count the task head, which every method trains alike. Size: *matched* to the budget within its tolerance,
*nearest* where no setting is, *native* for a method without a size knob, *explicit* where the experiment sets the size;
in brackets the distance from the budget. Stored: the adapter file.
Times come from a separate pass in which the methods take turns: median ± half the distance between the quartiles;
ratios are taken within the same round, and in brackets stands their 95 % interval: over the processes of the pass
(Student's, on logarithms), or over the rounds where there was one process (bootstrap of the median). What else used the
machine stands under the table, where it is known. A dash (—) means not measured, never zero.
"""


@dataclass(frozen=True)
class Choice:
    """What a report has beside what it always has.

    Attributes:
        columns: the columns of its readable tables of scores, by name; none for all.
        pdf: whether its figures are PDF files, too.
        runs: address of the folder with the records, as seen from the page for a browser; empty for names alone.
    """

    columns: tuple[str, ...] = ()
    pdf: bool = False
    runs: str = "../runs"


def build(
    comparisons: Sequence[Comparison],
    averages: Sequence[Average],
    passes: Sequence[Latencies] = (),
    tunings: Sequence[Tuning] = (),
    choice: Choice = Choice(),
    curves: Sequence[AxisCurve] = (),
) -> Iterator[tuple[str, bytes]]:
    """Build the files of a report.

    Args:
        comparisons: one table per experiment, task and budget.
        averages: tables over tasks.
        passes: latencies of profile passes.
        tunings: tables of trials.
        choice: columns and kinds of figures.
        curves: scores along the axes of experiments.

    Returns:
        (path in the report, content) of each file, `report.md` first and `index.html` second.
    """
    shown = apart([*comparisons, *passes, *tunings, *averages, *curves])
    names = sorted({one.experiment for one in shown}, key=natural)
    by_experiment = {name: [x for x in shown if x.experiment == name] for name in names}
    looks = {name: plots.looks(x for x in group if isinstance(x, Comparison)) for name, group in by_experiment.items()}
    sensitivities = _sensitivities(shown)
    files: dict[str, bytes] = {}
    figures: dict[str, list[str]] = {}
    with style.also_pdf(choice.pdf):
        for x in (x for group in by_experiment.values() for x in group):
            images = list(_images(x, looks[x.experiment]))
            files |= {f"tables/{name}": text.encode() for name, text in _texts(x, choice.columns)}
            files |= {f"tables/{name}": text.encode() for name, text in _sensitivity_tables(x, sensitivities)}
            files |= {f"figures/{name}": content for name, content in images}
            figures[x.slug] = [name for name, _ in images if name.endswith(".png")]
    yield "report.md", _page(by_experiment, figures, sensitivities, choice.columns).encode()
    yield web_page.NAME, web_page.build(shown, choice.runs)
    if found := [answers.json_ready(a) for x in shown if isinstance(x, Comparison) and (a := answer.of(x))]:
        yield "verdict.json", (json.dumps(found, indent=1, allow_nan=False) + "\n").encode()
    yield from files.items()


def _images(x: Shown, looks: Mapping[str, Look]) -> Iterator[tuple[str, bytes]]:
    match x:
        case Comparison():
            yield from plots.figures(x, looks)
        case Latencies():
            yield from plots.latency_figure(x, looks)
        case Tuning():
            yield from plots.tuning_figures(x, looks)
        case AxisCurve():
            yield from plots.axis_figure(x, looks)
        case Average():
            yield from plots.average_figures(x, x.slug, looks)


def _texts(x: Shown, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    match x:
        case Comparison():
            yield from _tables(x, names)
        case Latencies():
            yield from latency_page.tables_of(x)
        case Tuning():
            yield from _tuning_tables(x)
        case AxisCurve():
            yield from axis_tables.tables_of(x)
        case Average():
            yield from _average_tables(x, names)


def _tables(c: Comparison, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield f"{c.slug}.md", f"# {escape(c.title)}\n\n{_comparison(c, names)}"
    yield f"{c.slug}.csv", tables.csv([export.flat(export.row(c, e)) for e in c.entries])
    what = f"{c.metric} on the test split with its 95 % interval (number of seeds), and cost"
    caption = f"{c.title}: {what}; {c.backbone}, {length(c.budget)} of {c.budget.batch_size} examples."
    shown, below = tables.columns(c, names or THESIS), [*conclusions.marks(c), *c.notes]
    yield f"{c.slug}.tex", tables.latex(shown, c.entries, caption, c.slug, below, names != (tables.ALL,))
    if differences.known(c):
        name = f"{c.slug}--differences"
        yield f"{name}.md", f"# {escape(c.title)}: differences\n\n{_differences(c)}"
        yield f"{name}.csv", tables.csv([export.flat({"method": e.label, **differences.row(c, e)}) for e in c.entries])
        caption, below = f"{c.title}: differences.", [differences.legend(c)]
        yield f"{name}.tex", tables.latex(differences.columns(c), c.entries, caption, name, below)
    if step_costs.known(c.entries):
        name = f"{c.slug}--step"
        yield f"{name}.md", f"# {escape(c.title)}: the training step\n\n{_step(c)}"
        yield f"{name}.csv", tables.csv([step_costs.row(e) for e in c.entries])
        caption, below = f"{c.title}: what a training step is made of.", [step_costs.LEGEND]
        yield f"{name}.tex", tables.latex(step_costs.columns(c.reference), c.entries, caption, name, below)
    if class_scores.known(c):
        name = f"{c.slug}--classes"
        yield f"{name}.md", f"# {escape(c.title)}: the classes\n\n{_classes(c)}"
        yield f"{name}.csv", tables.csv(class_scores.rows(c))
        caption, below = f"{c.title}: the classes.", [class_scores.legend(c)]
        yield f"{name}.tex", tables.latex(class_scores.columns(c), class_scores.table(c), caption, name, below)
        yield f"{c.slug}--confusion.csv", tables.csv(class_scores.confusion_rows(c))
    if forgetting.known(c):
        name = f"{c.slug}--forgetting"
        yield f"{name}.md", f"# {escape(c.title)}: what was forgotten\n\n{_forgetting(c)}"
        yield f"{name}.csv", tables.csv(forgetting.rows(c))
        caption, below = f"{c.title}: what was forgotten.", [forgetting.legend(c)]
        yield f"{name}.tex", tables.latex(forgetting.columns(c), c.entries, caption, name, below)


def _sensitivities(shown: Sequence[Shown]) -> dict[str, Sensitivity]:
    """By file name of the table, where there is anything to show."""
    tables = [x for x in shown if isinstance(x, Comparison)]
    found = {c.slug: sensitivity.of(c) for c in tables}
    found |= {a.slug: sensitivity.over_tasks(a, tables) for a in shown if isinstance(a, Average)}
    return {slug: s for slug, s in found.items() if sensitivity_page.known(s)}


def _sensitivity_tables(x: Shown, of: Mapping[str, Sensitivity]) -> Iterator[tuple[str, str]]:
    if isinstance(x, (Comparison, Average)) and (s := of.get(x.slug)):
        title = x.title if isinstance(x, Comparison) else x.experiment
        yield from sensitivity_page.tables_of(s, x.reference, x.slug, title)


def _lines(x: Comparison | Average, of: Mapping[str, Sensitivity]) -> list[str]:
    return [sensitivity_page.line(s, x.reference, x.slug)] if (s := of.get(x.slug)) else []


def _tuning_tables(t: Tuning) -> Iterator[tuple[str, str]]:
    yield f"{t.slug}.md", f"# {escape(t.title)}\n\n{_tuning(t)}"
    yield f"{t.slug}.csv", tables.csv(trials.trial_rows(t))
    caption = f"{t.title}: {t.backbone}, {length(t.budget)} a trial."
    yield f"{t.slug}.tex", tables.latex(trials.columns(t), t.rows, caption, t.slug, [trials.legend(t)])
    if curve := trials.best_rows(t):
        yield f"{t.slug}--expected-best.csv", tables.csv(curve)


def _average_tables(a: Average, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    name = a.slug
    yield f"{name}.md", f"# {escape(a.experiment)}: average over tasks\n\n{_average(a, names)}"
    yield f"{name}.csv", tables.csv(export.average_rows(a))
    caption = f"{a.experiment}: average over {len(a.tasks)} tasks."
    shown = tables.average_columns(a, names)
    yield f"{name}.tex", tables.latex(shown, a.standings, caption, name, a.notes, names != (tables.ALL,))


def _page(
    by_experiment: Mapping[str, Sequence[Shown]],
    figures: Mapping[str, Sequence[str]],
    sensitivities: Mapping[str, Sensitivity],
    names: Sequence[str],
) -> str:
    page = f"The same as a page to sort, filter and decide by: `{web_page.NAME}`, which is written beside this file.\n"
    parts = ["# Results\n", *_answers(by_experiment), page, f"Contents:\n\n{navigation.contents(by_experiment)}"]
    shown_names = (text for group in by_experiment.values() for x in group for text in figure_names.shown(x))
    if note := missing_note(shown_names):
        parts.append(f"{escape(note)}\n")
    for name, group in by_experiment.items():
        parts.append(f"## {escape(name)}\n")
        for x in navigation.in_order(group):
            parts += [navigation.heading(x), *_section(x, figures[x.slug], sensitivities, names)]
    return "\n".join([*parts, '<a id="how-to-read"></a>\n\n## How to read the tables\n', LEGEND])


def _section(
    x: Shown, images: Sequence[str], sensitivities: Mapping[str, Sensitivity], names: Sequence[str]
) -> Iterator[str]:
    match x:
        case Average():
            shown = (_figure(f, OVER_TASKS[f.split("--")[-1]], x.experiment) for f in images)
            yield from [_average(x, names), _links(x.slug), *_lines(x, sensitivities), *shown]
        case AxisCurve():
            shown = (_figure(f, f"{x.metric} by {x.unit}", x.title) for f in images)
            yield from [*shown, axis_tables.text(x), _links(x.slug)]
        case Comparison():
            yield from _task(x, images, sensitivities, names)
        case Latencies():
            shown = (_figure(f, "What adapters add to inference", x.title) for f in images)
            yield from [*shown, folded("Latencies by batch and length", [latency_page.text(x)]), _links(x.slug)]
        case Tuning():
            yield from [folded("Trials", [_tuning(x)]), _links(x.slug), *_figures(x, images)]


def _task(
    c: Comparison, images: Sequence[str], sensitivities: Mapping[str, Sensitivity], names: Sequence[str]
) -> Iterator[str]:
    """The section of a table: what follows and the columns that say it; all else is folded."""
    yield f"{_list([*answers.first(c), *conclusions.sentences(c), *conclusions.unmarked(c)])}"
    yield tables.markdown(tables.columns(c, names or OVERVIEW), c.entries)
    yield from _figures(c, [f for f in images if f.endswith("--summary.png")])
    yield from [_list(c.notes), _links(c.slug), *_lines(c, sensitivities)]
    if not names:
        rest = [column.key for column in tables.columns(c)[1:] if column.key not in OVERVIEW]
        yield folded("The other columns", [tables.markdown(tables.columns(c, rest), c.entries)])
    yield folded("The setting and the data", [_setting(c)])
    if differences.known(c):
        yield folded("Who differs from whom", [_differences(c), _links(f"{c.slug}--differences")])
    if step_costs.known(c.entries):
        yield folded("The training step", [_step(c), _links(f"{c.slug}--step")])
    if class_scores.known(c):
        confusion = f"Every confusion as [CSV](tables/{c.slug}--confusion.csv).\n"
        yield folded("The classes", [_classes(c), _links(f"{c.slug}--classes"), confusion])
    if forgetting.known(c):
        yield folded("What was forgotten", [_forgetting(c), _links(f"{c.slug}--forgetting")])
    yield folded("More figures", _figures(c, [f for f in images if not f.endswith("--summary.png")]))
    yield from _samples(c)


def _answers(by_experiment: Mapping[str, Sequence[Shown]]) -> Iterator[str]:
    """What to take, by experiment and task; nothing where no table has an answer."""
    for name, group in by_experiment.items():
        tables = [c for c in group if isinstance(c, Comparison)]
        said = [f"{c.title}: {sentence}" for c in tables for sentence in answers.first(c)]
        said += filter(None, [answers.over_tasks([a for c in tables if c.point is None and (a := answer.of(c))])])
        if said:
            yield f"What to take from {escape(name)} ([JSON](verdict.json)):\n{_list(said)}"


def _comparison(c: Comparison, names: Sequence[str]) -> str:
    notes = [*answers.first(c), *conclusions.sentences(c), *conclusions.unmarked(c), *c.notes]
    return f"{_setting(c)}\n{tables.markdown(tables.columns(c, names), c.entries)}{_list(notes)}"


def _setting(c: Comparison) -> str:
    """What ran, and what was done to its data."""
    budget = c.budget
    facts = [
        f"Backbone {c.backbone}; {length(budget)} of {budget.batch_size} examples, at most "
        f"{budget.max_length} tokens each; reference: {c.reference}."
    ]
    if c.majority is not None:
        facts.append(f"Always answering the {constant_answer(c.metric)} gives {c.metric} {in_digits(c.majority)}.")
    data = "" if c.data is None else f"\nThe data:\n{_list(list(data_text.facts(c.data, budget.max_length)))}"
    return f"{escape(' '.join(facts))}\n{data}"


def _differences(c: Comparison) -> str:
    return f"{tables.markdown(differences.columns(c), c.entries)}\n{differences.legend(c)}\n"


def _tuning(t: Tuning) -> str:
    facts = f"{length(t.budget)} a trial, batches of {t.budget.batch_size} examples. {trials.legend(t)}"
    return f"{facts}\n\n{tables.markdown(trials.columns(t), t.rows)}"


def _step(c: Comparison) -> str:
    return f"{tables.markdown(step_costs.columns(c.reference), c.entries)}\n{step_costs.LEGEND}\n"


def _classes(c: Comparison) -> str:
    return f"{tables.markdown(class_scores.columns(c), class_scores.table(c))}\n{class_scores.legend(c)}\n"


def _forgetting(c: Comparison) -> str:
    return f"{tables.markdown(forgetting.columns(c), c.entries)}\n{forgetting.legend(c)}\n"


def _average(a: Average, names: Sequence[str]) -> str:
    return f"{tables.markdown(tables.average_columns(a, names), a.standings)}{_list(a.notes)}"


def _list(notes: Sequence[str]) -> str:
    return "\n" + "".join(f"- {escape(note)}\n" for note in notes) if notes else ""


def _links(slug: str) -> str:
    return f"The table as [CSV](tables/{slug}.csv), [LaTeX](tables/{slug}.tex), [Markdown](tables/{slug}.md).\n"


def _figures(c: Comparison | Tuning, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        heading = HEADINGS[name.removeprefix(f"{c.slug}--").removesuffix(".png")]
        yield _figure(name, heading, c.title)


def _figure(name: str, heading: str, title: str) -> str:
    return f"![{heading}, {escape(title)}](figures/{name})\n"


def _samples(c: Comparison) -> Iterator[str]:
    """Each configuration's text for one prompt of the test split, for generation tasks."""
    shown = [(e.label, sample) for e in c.entries if (sample := first_sample(e))]
    if shown:  # never folded: Python-Markdown takes what stands between tags for HTML, and a code block is not escaped
        yield "One sample of each configuration:\n"
    for label, sample in shown:
        texts = (f"{name}: {getattr(sample, name)}" for name in ("prompt", "prediction", "reference"))
        yield f"{escape(label)}:\n\n{''.join(map(code_block, texts))}"
