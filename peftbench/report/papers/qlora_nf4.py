"""QLoRA's table 2, reproduced on weights alone: the rounding error of NF4, FP4 and Int4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftbench.report.papers import Claim, Paper, PaperFigure, Reproduction, Results, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "reference/nf4_error/nf4_error.json"
PAIRS = (  # (more error, less error), in the paper's order of perplexity
    *((other, "nf4") for other in ("fp4-e3m0", "fp4-e2m1", "fp4-bitsandbytes", "int4")),
    ("fp4-e2m1", "fp4-e3m0"),
    ("int4", "fp4-e2m1"),
)
REQUANTISED = ("smollm2-135m",)  # their file is already 4-bit: shown, not judged


def reproduce(results: Results) -> Reproduction:
    """Reproduce the figure from the records. Raises NotRun without them."""
    errors = results.json(FILE)
    types, rows = errors["types"], errors["rows"]
    judged = [row for row in rows if row["source"] not in REQUANTISED]
    order = [f"{row['source']}: {', '.join(_labels(types, _order(row)))}" for row in rows]
    return Reproduction(
        scale=f"relative error of rounding {sum(r['weights'] for r in rows):,} weights ("
        f"{', '.join(r['source'] for r in rows)}) in blocks of {errors['block']}; no model is evaluated",
        claims=tuple(_claim(types, row, *pair) for row in judged for pair in PAIRS),
        table=Table(
            ("source", "type", "error, float32 absmax", "error, double quantisation", "paper's perplexity"),
            tuple(cells for row in rows for cells in _rows(types, row)),
        ),
        draw=lambda canvas: _draw(canvas, types, rows),
        notes=(
            f"From the smallest error to the largest: {'; '.join(order)}. The paper's order by perplexity: NF4, FP4 "
            "(E3M0), FP4 (E2M1), Int4. A smaller error need not mean a smaller perplexity.",
            *(f"{row['source']}: {row['what']}." for row in rows),
        ),
    )


def _order(row: Mapping[str, Any]) -> list[str]:
    return sorted(row["error"], key=lambda name: row["error"][name]["float32"])


def _labels(types: Mapping[str, Any], names: list[str]) -> list[str]:
    return [types[name]["label"] for name in names]


def _claim(types: Mapping[str, Any], row: Mapping[str, Any], worse: str, better: str) -> Claim:
    """An exact claim without interval: both types round the same weights."""
    more = 100 * (row["error"][worse]["float32"] / row["error"][better]["float32"] - 1)
    theirs = types[worse]["paper_perplexity"] - types[better]["paper_perplexity"]
    says = f"{types[worse]['label']} has a larger error than {types[better]['label']} ({row['source']})"
    return Claim(says, f"perplexity +{theirs:.2f}", more, more, more, above=0, form="{:+.1f} %")


def _rows(types: Mapping[str, Any], row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (row["source"], kind["label"], *(f"{100 * row['error'][name][way]:.3f} %" for way in ("float32", "double")),
         f"{kind['paper_perplexity']:.2f}")
        for name, kind in types.items()
    ]  # fmt: skip


def _draw(canvas: Figure, types: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> None:
    from peftbench.report.figures.style import COLOURS

    names = list(types)
    panels = canvas.subplots(1, len(rows), sharey=True, sharex=True, squeeze=False)[0]
    for panel, row in zip(panels, rows, strict=True):
        errors = [100 * row["error"][name]["float32"] for name in names]
        panel.barh(range(len(names)), errors, color=[COLOURS[1] if n == "nf4" else COLOURS[5] for n in names])
        for y, error in enumerate(errors):
            panel.text(error, y, f" {error:.1f}", va="center", fontsize=8.5)
        panel.set_title(row["source"], loc="left", fontsize=10)
        panel.set_xlabel("relative error, %")
        panel.grid(False, axis="y")
    panels[0].set_yticks(
        range(len(names)), [f"{types[n]['label']}\n(paper: {types[n]['paper_perplexity']})" for n in names]
    )
    panels[0].invert_yaxis()
    panels[0].set_xlim(0, 115 * max(e["float32"] for row in rows for e in row["error"].values()))


FIGURE = PaperFigure(
    number=6,
    name="qlora_nf4",
    title="Error of 4-bit data types",
    paper=Paper("Dettmers et al. 2023", "QLoRA", "2305.14314", "table 2"),
    published=(
        "Mean perplexity of 125M to 13B models on Pile Common Crawl: Int4 34.34, FP4 (E2M1) 31.07, FP4 (E3M0) 29.48, "
        "NF4 with double quantisation 27.41. The paper has no error of weights."
    ),
    criterion=(
        "the errors come in the order of the paper's perplexities: NF4, FP4 (E3M0), FP4 (E2M1), Int4, on normal "
        "weights and on MiniLM's. An error stands here in place of a perplexity: the same types, another quantity."
    ),
    reproduce=reproduce,
    records=("reference/nf4_error",),
    commands=("python scripts/nf4_error.py",),
    size=(11.0, 4.4),
)  # fmt: skip
