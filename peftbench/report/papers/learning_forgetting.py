"""Learning against forgetting: each method's gain on its task, and what the base model could and no longer can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from peftbench.records.record import RunRecord
from peftbench.report.data import forgetting
from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table
from peftbench.report.papers._interval import of as interval
from peftbench.report.papers._probes import Array, points
from peftbench.report.papers._records import NotRun, group, label, need, scale
from peftbench.report.papers._sweep import same_setting
from peftbench.tasks.metrics import score as metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "reference/nlg_small"
REFERENCE, LORA = "full", ("lora", "lora-r64")  # lora: rank 8
CLAIMS = 3 * len(LORA)


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = results.runs(FOLDER)
    same_setting(runs)
    of = group(runs, label)
    need(of, (REFERENCE, *LORA), FOLDER)
    if len({tuple(r.spec.seed for r in of[name]) for name in (REFERENCE, *LORA)}) > 1:
        raise NotRun(f"the configurations of {FOLDER} have not finished the same seeds")
    rise = {name: np.stack([_rise(r) for r in same]) for name, same in of.items()}
    fall = {name: np.stack([_fall(r) for r in same]) for name, same in of.items()}
    overlap = {name: np.stack([_overlap(r) for r in of[name]]) for name in (REFERENCE, *LORA)}
    order = sorted(of, key=lambda name: -of[name][0].parameters.trainable)
    return Reproduction(
        scale=scale(runs),
        claims=_claims(rise, fall, overlap),
        table=Table(
            ("method", "parameters", "rate", "task: loss at the end", "task: ROUGE-L, BLEU", "WikiText-2: loss, base",
             "rise after each step", "ARC-Easy: right, base", "fall in points"),
            tuple(_row(name, of[name], rise[name], fall[name]) for name in order),
        ),
        draw=lambda canvas: _draw(canvas, of, order),
        incomparable=_nothing_forgotten(rise[REFERENCE]),
        notes=(
            "Forgetting is the rise of the mean loss (nats a token) on windows of WikiText-2's test text, and the fall "
            "of the share of right answers to questions of ARC-Easy, both the same for every run; the paper has the "
            "mean accuracy on HellaSwag, ARC-challenge and WinoGrande.",
            "Learning is judged by the ROUGE-L of what is written for each test example, where the paper has HumanEval "
            "and GSM8K; the figure has the loss on the task's validation split, which is known along the way.",
            "Each at the rate that its validation prefers; what it forgets at others was not measured.",
            "Intervals: over seeds and windows, questions or test examples; 95 % for the six claims together, and for "
            "a rise or fall in the table by itself.",
        ),
    )  # fmt: skip


def _rise(r: RunRecord) -> Array:  # (windows,)
    return _change(r, forgetting.LOSS)


def _fall(r: RunRecord) -> Array:  # (questions,), in points
    return -100.0 * _change(r, forgetting.ANSWERS)


def _change(r: RunRecord, m: forgetting.Measure) -> Array:
    points(r, m.probe)
    change = forgetting.of_run(r, m)
    if change is None:
        raise NotRun(f"{r.path.name} has no {m.probe} before its first step and after its last")
    return change


def _overlap(r: RunRecord) -> Array:  # (examples,), by their ids
    p = r.predictions
    assert p is not None  # a finished run
    by_id = sorted(zip(p.ids, p.values, p.labels, strict=True))
    return np.asarray([metric("rougeL", [value], [references]) for _, value, references in by_id], dtype=float)


def _nothing_forgotten(rise: Array) -> str | None:
    """Why forgetting cannot be compared, if the reference has not forgotten; else None."""
    change = interval(rise)
    if change.low > 0:
        return None
    return (
        f"nothing was forgotten at this budget: the loss on WikiText-2 changed by {change.value:+.4f} "
        f"[{change.low:+.4f}, {change.high:+.4f}] in full fine-tuning"
    )


def _claims(rise: dict[str, Array], fall: dict[str, Array], overlap: dict[str, Array]) -> tuple[Claim, ...]:
    claims = []
    for says, paper, of, form in (
        ("forgets less language than full fine-tuning: the rise of full less its own",
         "yes: .509 (r 64) and .414 (full)", rise, "{:+.4f}"),
        ("forgets fewer answers than full fine-tuning: the fall of full less its own, in points",
         "yes: .509 (r 64) and .414 (full)", fall, "{:+.1f}"),
        ("learns less than full fine-tuning: ROUGE-L (of 100) of full less its own", "yes: .417 (r 64) and .497 (full)",
         overlap, "{:+.1f}"),
    ):  # fmt: skip
        for name in LORA:
            apart = of[REFERENCE] - of[name]
            claims.append(Claim(f"{name} {says}", paper, *interval(apart, CLAIMS), above=0, form=form))
    return tuple(claims)


def _path(runs: list[RunRecord]) -> tuple[list[int], Array]:
    """Steps, and (steps, 2): rise of the loss on WikiText-2, and loss on the task; means over seeds."""
    seeds = []
    for r in runs:
        looked = {p["step"]: p["loss"] for p in points(r, "wikitext2_loss")}
        task = {v["step"]: v["perplexity"] for v in r.curve.validation if v["perplexity"] is not None}
        steps = sorted(looked.keys() & task.keys())
        seeds.append([(looked[s] - looked[0], np.log(task[s])) for s in steps])
    return steps, np.mean(seeds, axis=0)


def _row(name: str, runs: list[RunRecord], rise: Array, fall: Array) -> tuple[str, ...]:
    steps, path = _path(runs)
    test = [r.metrics.test for r in runs]
    ends, lost = interval(rise), interval(fall)
    by_step = [f"{step}: {x:+.4f}" for step, (x, _) in zip(steps, path, strict=True)]
    return (
        name,
        f"{runs[0].parameters.trainable:,}",
        f"{runs[0].spec.train.lr:g}",
        f"{path[-1, 1]:.3f}",
        ", ".join(f"{np.mean([t[m] for t in test]):.1f}" for m in ("rougeL", "bleu")),
        f"{np.mean([points(r, 'wikitext2_loss')[0]['loss'] for r in runs]):.4f}",
        f"{', '.join(by_step)} [{ends.low:+.4f}, {ends.high:+.4f}]",
        f"{np.mean([points(r, 'arc_easy')[0]['accuracy'] for r in runs]):.1%}",
        f"{lost.value:+.1f} [{lost.low:+.1f}, {lost.high:+.1f}]",
    )


def _draw(canvas: Figure, of: dict[str, list[RunRecord]], order: list[str]) -> None:
    from peftbench.report.figures.style import COLOURS, MARKERS, MUTED

    panel = canvas.subplots()
    for n, name in enumerate(order):
        steps, path = _path(of[name])
        colour, marker = COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]
        trainable = of[name][0].parameters.trainable
        panel.plot(path[:, 0], path[:, 1], color=colour, lw=1.1, alpha=0.6)
        for i, (x, y) in enumerate(path):
            last = i == len(path) - 1
            named = f"{name} ({trainable:,})" if last else None
            panel.plot(x, y, marker, color=colour, ms=9 if last else 5, label=named)
            panel.annotate(f"{steps[i]}", (x, y), (5, 4), textcoords="offset points", fontsize=7.5, color=MUTED)
    panel.axvline(0, color=MUTED, ls=":", lw=1.2)
    panel.invert_yaxis()
    panel.set_xlabel("forgetting: rise of the loss on WikiText-2 (nats a token; numbers: steps)")
    panel.set_ylabel("learning: loss on the task's validation split\n(nats a token, better upwards)")
    panel.legend(frameon=False, title="method (trainable parameters)", fontsize=8.5, title_fontsize=8.5)


FIGURE = PaperFigure(
    number=10,
    name="learning_forgetting",
    title="Learning against forgetting",
    paper=Paper("Biderman et al. 2024", "LoRA Learns Less and Forgets Less", "2405.09673", "figure 4"),
    published=(
        "Llama-2-7B on code (instruction tuning): HumanEval .497 in full fine-tuning, LoRA .358, .417, .498 at ranks "
        "16, 64, 256; the mean of HellaSwag, ARC-challenge and WinoGrande is .414 after full fine-tuning and .509 "
        "after LoRA of rank 64. In the paper's words, LoRA learns less and forgets less."
    ),
    criterion=(
        "at the end of training and at the rates that validation prefers, the loss on WikiText-2 has risen more in "
        "full fine-tuning than in LoRA of rank 8 and of rank 64, it has lost more answers to ARC-Easy than either, and "
        "it writes better descriptions than either."
    ),
    reproduce=reproduce,
    records=(FOLDER,),
    commands=(
        "python -m peftbench run experiments/nlg_small.yaml --results results/reference/nlg_small --data-dir DIR",
    ),
    size=(8.6, 5.4),
)
