"""Pairs compared in papers: LoRA with full fine-tuning, and at one size DoRA and QLoRA with LoRA."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from peftbench.report.data import scores
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison
from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table
from peftbench.report.papers._interval import Interval, around
from peftbench.report.papers._records import NotRun, scale
from peftbench.report.stats import intervals
from peftbench.report.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDERS = ("reference/embedded_small", "reference/decided_small", "reference/glue_small")


class Pair(NamedTuple):
    """A claim on two methods, as a range of the ratio of their scores."""

    method: str
    reference: str
    says: str
    paper: str
    above: float
    below: float = float("inf")
    equal: tuple[float, float] | None = None


PAIRS = (
    Pair("lora", "full", "LoRA is at most 2 % below full fine-tuning",
         "101 % (87.2 and 86.4, RoBERTa base over GLUE, LoRA's table 2)", above=0.98),
    Pair("dora", "lora", "DoRA is above LoRA",
         "105 % (78.4 and 74.7, LLaMA-7B on commonsense, DoRA's table 1)", above=1.0, equal=(0.98, 1.02)),
    Pair("qlora", "lora", "QLoRA is within 2 % of LoRA",
         "100 % (60.9 and 60.7, T5-11B on instructions, QLoRA's table 3)", above=0.98, below=1.02),
)  # fmt: skip


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = [r for folder in FOLDERS for r in results.runs(folder)]
    tables = {folder: _learned(results, folder) for folder in FOLDERS}
    ratios = {(p, folder): {c.task: _ratio(c, p) for c in tables[folder]} for p in PAIRS for folder in FOLDERS}
    means = {key: _mean(by_task.values()) for key, by_task in ratios.items()}
    ends = {(p, folder): _interval(e, len(means), tables[folder]) for (p, folder), e in means.items()}
    return Reproduction(
        scale="; ".join(f"{f}: {scale([r for r in runs if r.path.is_relative_to(results.root / f)])}" for f in FOLDERS),
        claims=tuple(_claim(p, folder, ours) for (p, folder), ours in ends.items()),
        table=Table(
            ("pair", *(c.task for folder in FOLDERS for c in tables[folder])),
            tuple(_row(p, ratios) for p in PAIRS),
        ),
        draw=lambda canvas: _draw(canvas, ratios, ends),
        notes=(
            "Ratios of mean test scores, by seed and test example. Tasks that full fine-tuning did not learn are left "
            "out; the mean over tasks takes them as given. A claim's interval holds for all of them together, a "
            "task's own in the table at 95 %. Where seeds were added until verdicts were sure, as in decided_small, a "
            "claim's interval is wider by what a look costs there.",
        ),
    )


def _learned(results: Results, folder: str) -> list[Comparison]:
    """The tables of the learned tasks. Raises NotRun if one lacks a method of a pair."""
    tables = [c for c in compare(results.counting(folder)) if c.learned is not False]
    wanted = {label for p in PAIRS for label in (p.method, p.reference)}
    for c in tables:
        if missing := sorted(wanted - scores.of(c).keys()):
            raise NotRun(f"{folder} has no finished run of {', '.join(missing)} on {c.task}")
    if not tables:
        raise NotRun(f"{folder} has no task that full fine-tuning learned")
    return tables


def _ratio(c: Comparison, p: Pair) -> Estimate:
    ratio = intervals.ratio(scores.of(c)[p.method], scores.of(c)[p.reference])
    if ratio is None:
        raise NotRun(f"{p.reference} has no positive score on {c.task}, so there is no ratio to it")
    return ratio


def _mean(ratios: Iterable[Estimate]) -> Estimate:
    mean = intervals.average(list(ratios))
    if mean is None:
        raise NotRun("one seed without its predictions has no interval")
    return mean


def _interval(e: Estimate, claims: int, tables: Sequence[Comparison]) -> Interval:
    design = tables[0].design
    return around(e, claims, design.looks, design.spending)


def _claim(p: Pair, folder: str, ours: Interval) -> Claim:
    return Claim(f"{p.says} ({folder.partition('/')[2]})", p.paper, *ours, above=p.above, below=p.below,
                 equal=p.equal, form="{:.3f}")  # fmt: skip


def _row(p: Pair, ratios: dict[tuple[Pair, str], dict[str, Estimate]]) -> tuple[str, ...]:
    shown = [around(e) for folder in FOLDERS for e in ratios[p, folder].values()]
    return f"{p.method} / {p.reference}", *(f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in shown)


def _draw(
    canvas: Figure, ratios: dict[tuple[Pair, str], dict[str, Estimate]], means: dict[tuple[Pair, str], Interval]
) -> None:
    from peftbench.report.figures.style import COLOURS, MUTED

    panels = canvas.subplots(1, len(PAIRS), sharey=True)
    for panel, p in zip(panels, PAIRS, strict=True):
        names: list[str] = []
        for number, folder in enumerate(FOLDERS):
            rows = {task: around(e) for task, e in ratios[p, folder].items()}
            rows[f"mean, {folder.partition('/')[2]}"] = means[p, folder]
            for task, i in rows.items():
                is_mean = i is means[p, folder]
                colour = COLOURS[number]
                panel.errorbar(i.value, len(names), xerr=[[i.value - i.low], [i.high - i.value]], capsize=2.5,
                               color=colour, marker="D" if is_mean else "o", ms=7 if is_mean else 4.5,
                               lw=2.0 if is_mean else 1.0)  # fmt: skip
                names.append(task)
        panel.axvline(1, lw=1, color=MUTED, zorder=1)
        panel.axvspan(p.above, min(p.below, panel.get_xlim()[1]), color=MUTED, alpha=0.15, lw=0)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_title(f"{p.method} / {p.reference}", loc="left", fontsize=10)
    panels[0].invert_yaxis()
    panels[1].set_xlabel("ratio of mean test scores (bars: 95 % interval, the means' together; shaded: as papers say)")


FIGURE = PaperFigure(
    number=13,
    name="equal_size",
    title="Pairs that papers compare: LoRA and full, DoRA and LoRA, QLoRA and LoRA",
    paper=Paper("Hu et al. 2021", "LoRA", "2106.09685", "table 2; DoRA (arXiv:2402.09353), table 1; QLoRA "
                "(arXiv:2305.14314), table 3"),
    published=(
        "RoBERTa base over GLUE: full 86.4, LoRA 87.2. LLaMA-7B over eight commonsense tasks: LoRA 74.7, DoRA 78.4. "
        "T5-11B on instructions, RougeL: LoRA in BF16 60.7, QLoRA in NF4 60.9. Often quoted besides: LoRA at 90 "
        "to 95 % of full fine-tuning, QLoRA 1 to 2 % below LoRA."
    ),
    criterion=(
        "over the learned tasks of each set, LoRA has at least 98 % of full fine-tuning's score, DoRA more than "
        "LoRA's, and QLoRA between 98 and 102 % of LoRA's."
    ),
    reproduce=reproduce,
    records=FOLDERS,
    commands=(
        "python -m peftbench run experiments/embedded_small.yaml --results results/reference/embedded_small",
        "python -m peftbench run experiments/decided_small.yaml --results results/reference/decided_small",
        "python -m peftbench run experiments/glue_small.yaml --data-dir GLUE --results results/reference/glue_small",
    ),
    size=(11.0, 5.6),
)  # fmt: skip
