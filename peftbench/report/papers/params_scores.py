"""LoRA's figure 2 and Houlsby's figure 4: score by trainable parameters, for every method and size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbench.records.record import RunRecord
from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table, run_command
from peftbench.report.papers._interval import Interval, difference, mean
from peftbench.report.papers._records import need, scale
from peftbench.report.papers._sweep import (
    TWO_POINTS,
    ChosenRate,
    accuracy,
    best,
    choose_rates,
    hyper,
    method,
    notes,
    points,
    same_setting,
    unlearned,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDERS = ("paper/params_scores", "paper/lora_rank", "paper/prefix_length")
SIZES = {"lora": "rank", "dora": "rank", "vera": "rank", "adapter": "bottleneck", "prefix": "length"}
FAMILIES = (
    *("full", "lora", "dora", "adapter", "adapter-parallel", "prefix"),
    *("vera", "bitfit", "layernorm", "ia3", "linear_probe"),
)
MARGIN = 2.0  # points

Rows = dict[tuple[str, int], ChosenRate]


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    runs = [r for folder in FOLDERS for r in results.runs(folder, lambda r: family(r) in FAMILIES)]
    same_setting(runs)
    rows = choose_rates(runs, lambda r: (family(r), size(r)))
    need({name for name, _ in rows}, FAMILIES, FOLDERS[0])
    shown = sorted(rows.values(), key=lambda t: (FAMILIES.index(t.key[0]), t.key[1]))
    return Reproduction(
        scale=scale([r for t in shown for r in t.runs]),
        claims=_claims(rows),
        table=Table(("method", "size", "parameters", "rate", "accuracy"), tuple(map(_row, shown))),
        draw=lambda canvas: _draw(canvas, shown),
        incomparable=unlearned(rows.values()),
        notes=(_choices(rows), *notes(results, FOLDERS, rows)),
    )


def _choices(rows: Rows) -> str:
    """The number of sizes and rates that each method chose from; more choices are an advantage."""
    tried = {name: sum(len(t.rates) for t in rows.values() if t.key[0] == name) for name in FAMILIES}
    return f"Sizes and rates to choose among: {', '.join(f'{name} {n}' for name, n in tried.items())}."


def family(r: RunRecord) -> str:
    """The method; the adapter's two placements are separate families."""
    name = method(r)
    return f"{name}-{hyper(r, 'placement')}" if name == "adapter" and hyper(r, "placement") != "houlsby" else name


def size(r: RunRecord) -> int:
    """The rank, width or length; 0 for a method with one size."""
    return int(hyper(r, SIZES[method(r)])) if method(r) in SIZES else 0


def _claims(rows: Rows) -> tuple[Claim, ...]:
    def top(name: str) -> ChosenRate:
        return best(t for t in rows.values() if t.key[0] == name)

    def less(a: ChosenRate, b: ChosenRate) -> Interval:
        return points(difference(a.runs, b.runs, claims=6))

    lora, full, adapter = top("lora"), top("full"), top("adapter")
    return (
        Claim("adapters, at the size that validation prefers, are not more than 2 points below full fine-tuning",
              "−0.4 points (Houlsby, table 1: 80.0 and 80.4)", *less(adapter, full), above=-MARGIN, form="{:+.1f}"),
        Claim("one size (64) is not more than 2 points below the size that validation prefers",
              "−0.4 points (Houlsby, table 1: 79.6 and 80.0)", *less(rows["adapter", 64], adapter), above=-MARGIN,
              form="{:+.1f}"),
        Claim("LoRA is not more than 2 points below full fine-tuning", "+0.8 points (LoRA, table 2: 87.2 and 86.4)",
              *less(lora, full), above=-MARGIN, form="{:+.1f}"),
        Claim("LoRA beats adapters", "+1.8 points (LoRA, table 2: 87.2 and 85.4)", *less(lora, adapter), above=0,
              equal=TWO_POINTS, form="{:+.1f}"),
        Claim("LoRA beats BitFit", "+2.0 points (LoRA, table 2: 87.2 and 85.2)", *less(lora, top("bitfit")), above=0,
              equal=TWO_POINTS, form="{:+.1f}"),
        Claim("LoRA beats prefixes", "above them at every size (LoRA, figure 2)", *less(lora, top("prefix")), above=0,
              equal=TWO_POINTS, form="{:+.1f}"),
    )  # fmt: skip


def _row(t: ChosenRate) -> tuple[str, ...]:
    return t.key[0], str(t.key[1] or "—"), f"{t.trainable:,}", f"{t.lr:g}", accuracy(t)


def _draw(canvas: Figure, shown: list[ChosenRate]) -> None:
    from peftbench.report.papers import _drawing as drawing

    panel = canvas.subplots()
    for i, name in enumerate(FAMILIES):
        mine = [t for t in shown if t.key[0] == name]
        drawing.line(panel, [t.trainable for t in mine], [mean(t.runs) for t in mine], name, i, **drawing.OPEN)
    panel.set_xscale("symlog", linthresh=1000)
    panel.set_xlim(-400, 1e8)
    panel.set_xticks([0, *(10**i for i in range(3, 9))])
    panel.set_xlabel("trainable parameters, the head's not counted (linear up to 1,000)")
    panel.set_ylabel("test accuracy (bars: 95 % interval)")
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)


FIGURE = PaperFigure(
    number=3,
    name="params_scores",
    title="Score against trainable parameters, every method over its sizes",
    paper=Paper("Hu et al. 2021", "LoRA", "2106.09685", "figure 2; Houlsby et al. 2019 (arXiv:1902.00751), figure 4"),
    published=(
        "LoRA's figure 2 has GPT-3 175B on WikiSQL and MultiNLI: LoRA above full fine-tuning, adapters and BitFit, and "
        "prefixes that fall again as they grow. In its table 2, RoBERTa base over GLUE: full 86.4, BitFit 85.2, "
        "adapters 84.4 (0.3 million) and 85.4 (0.9), LoRA 87.2 (0.3). Houlsby, BERT large over GLUE: full 80.4, "
        "adapters of the best size 80.0, of size 64 79.6."
    ),
    criterion=(
        "LoRA and adapters lose at most 2 points to full fine-tuning, adapters of one size at most 2 to those of the "
        "best, and LoRA beats adapters, BitFit and prefixes; each method at the size and rate that validation prefers."
    ),
    reproduce=reproduce,
    records=FOLDERS,
    commands=tuple(run_command(name) for name in ("lora_rank", "prefix_length", "params_scores")),
    size=(9.2, 5.4),
)  # fmt: skip
