"""QLoRA's memory: predicted peaks of full fine-tuning, LoRA and QLoRA for a 7B and a 65B Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table
from peftbench.report.papers._records import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "paper/qlora_memory/qlora_memory.json"
GB, MB = 1e9, 1e6
PARTS = ("weights", "adapter", "head", "gradients", "optimizer", "activations", "temporaries")
MAIN = tuple(f"{model} {method}" for model in ("llama-7b", "llama-65b") for method in ("full", "lora", "qlora"))
SMALL, UNCHECKED = "llama-7b qlora 0.2 %", "llama-7b qlora 0.2 %, no checkpointing"

ERROR = 0.05  # of a predicted total, either way: predicted for CPU kernels, not verified on a GPU

Rows = dict[str, Mapping[str, Any]]


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    predictions = results.json(FILE)
    rows: Rows = {row["name"]: row for row in predictions["rows"]}
    need(rows, (*MAIN, SMALL, UNCHECKED), FILE)
    setting, assumed, rank = rows[MAIN[0]]["setting"], rows[MAIN[0]]["assumed"], rows[MAIN[2]]["hyper"]["rank"]
    return Reproduction(
        scale=f"predicted, not measured ({assumed['device']}): one step at batch {setting['batch']} × {setting['seq']} "
        f"tokens in {setting['dtype']}, gradient checkpointing, AdamW in 32 bits, rank {rank}",
        claims=_claims(rows, predictions["bits_per_weight"]),
        table=Table(
            ("", "peak, GB", *(f"{part}, GB" for part in PARTS), "trainable"),
            tuple(_row(row) for row in rows.values()),
        ),
        draw=lambda canvas: _draw(canvas, rows),
        notes=(
            *(f"{key}: {meaning}." for key, meaning in assumed.items()),
            "The paper's 780 GB are 12 bytes a parameter (16-bit weights and gradients, two averages in 32 bits); full "
            "fine-tuning here has all four in 32 bits, 16 bytes. Its 567 MB are input gradients; activations here are "
            "all that is kept for backward.",
        ),
    )


def _claims(rows: Rows, bits: Mapping[str, float]) -> tuple[Claim, ...]:
    def exact(says: str, paper: str, value: float, **range_and_form: Any) -> Claim:
        return Claim(says, paper, value, value, value, **range_and_form)

    def total(says: str, paper: str, name: str, **range_: Any) -> Claim:
        peak = rows[name]["peak_bytes"] / GB
        return Claim(says, paper, peak, (1 - ERROR) * peak, (1 + ERROR) * peak, **range_, form="{:,.1f} GB")

    small, free = rows[SMALL], rows[UNCHECKED]["at_peak"]
    base = small["at_peak"]["weights"] / MB
    return (
        total("full fine-tuning of 65B takes more than 780 GB", "> 780 GB", "llama-65b full", above=780),
        total("QLoRA of 65B takes less than 48 GB", "< 48 GB", "llama-65b qlora", below=48),
        exact("double quantisation saves 0.373 bits a weight", "0.373 (0.5 to 0.127)", bits["float32"] - bits["double"],
              above=0.372, below=0.374, form="{:.4f}"),
        exact("the 4-bit base of 7B takes what the paper says, within 10 %", "5,048 MB", base, above=0.9 * 5048,
              below=1.1 * 5048, form="{:,.0f} MB"),
        exact("without checkpointing, activations outweigh LoRA's parameters ten times", "22 times (567 and 26 MB)",
              free["activations"] / free["adapter"], above=10, form="{:.1f} times"),
    )  # fmt: skip


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    parts = (f"{row['at_peak'][part] / GB:.2f}" for part in PARTS)
    return row["name"], f"{row['peak_bytes'] / GB:.2f}", *parts, f"{row['trainable']:,}"


def _draw(canvas: Figure, rows: Rows) -> None:
    from peftbench.report.figures.style import COLOURS

    panels = canvas.subplots(1, 2)
    shown = [part for part in PARTS if any(rows[name]["at_peak"][part] for name in MAIN)]
    for panel, model in zip(panels, ("llama-7b", "llama-65b"), strict=True):
        names = [name for name in MAIN if name.startswith(model)]
        left = [0.0] * len(names)
        for i, part in enumerate(shown):
            sizes = [rows[name]["at_peak"][part] / GB for name in names]
            panel.barh(range(len(names)), sizes, left=left, color=COLOURS[i + 1], label=part, lw=0)
            left = [a + b for a, b in zip(left, sizes, strict=True)]
        for y, total in enumerate(left):
            panel.text(total, y, f" {total:,.1f}", va="center", fontsize=9)
        panel.set_yticks(range(len(names)), [name.split()[1] for name in names])
        panel.invert_yaxis()
        panel.set_xlim(0, 1.2 * max(left))
        panel.set_title(model, loc="left", fontsize=10)
        panel.set_xlabel("memory at the step's peak, GB")
        panel.grid(False, axis="y")
    panels[1].axvline(48, ls=":", color="#666666", label="48 GB, the paper's")
    panels[1].legend(frameon=False, fontsize=8.5)


FIGURE = PaperFigure(
    number=6,
    name="qlora_memory",
    title="Memory of full fine-tuning, LoRA and QLoRA",
    paper=Paper("Dettmers et al. 2023", "QLoRA", "2305.14314", "sections 1 to 3 and figure 6"),
    published=(
        "Full fine-tuning of a 65B Llama in 16 bits takes more than 780 GB, QLoRA less than 48 GB. Double "
        "quantisation: 0.5 to 0.127 bits a weight. At 7B and batch 1: base 5,048 MB, LoRA's input gradients 567 MB (18 "
        "MB with checkpointing), LoRA's parameters (0.2 %) 26 MB."
    ),
    criterion=(
        "the two totals at 65B lie on the paper's side of 780 and 48 GB, double quantisation saves 0.373 bits, the "
        "4-bit base of 7B is within 10 % of the paper's, and without checkpointing activations outweigh LoRA's "
        "parameters ten times. The totals are taken give or take 5 %: nobody verified them on a GPU."
    ),
    reproduce=reproduce,
    commands=("python scripts/qlora_memory.py",),
    size=(11.0, 4.4),
)
