"""How far 4-bit data types move weights: NF4 against Int4 and FP4, the types of QLoRA's table 2, without a perplexity.

python scripts/nf4_error.py            # measure, then write table and figure (minutes: 121 million weights)
python scripts/nf4_error.py --draw     # table and figure again, from the JSON alone

Every weight is divided by the largest magnitude of its block of 64 (absmax), rounded to the nearest value of the type's
table (between two, to the lower), and multiplied back: by the absmax as float32, or by what double quantisation makes
of it (section 3). The error is ||w - w'|| / ||w|| over all weights of a source.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from peftbench.backbones.load import load
from peftbench.method.layers import nf4, nf4_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "reference" / "nf4_error"
SEED, NORMAL = 0, 1 << 22  # of the normal weights
PAPER = "QLoRA (arXiv:2305.14314), table 2: mean perplexity on Pile Common Crawl"


class DataType(NamedTuple):
    label: str
    paper: float | None  # mean perplexity in table 2
    table: Tensor  # ascending, in [-1, 1]


TYPES = {
    "int4": DataType("Int4", 34.34, nf4_tables.integer_table()),
    "fp4-e2m1": DataType("FP4 (E2M1)", 31.07, nf4_tables.float_table(2, 1)),
    "fp4-bitsandbytes": DataType("FP4 (E2M1 of bitsandbytes)", 31.07, nf4_tables.float_table(2, 1, 1 / 16)),
    "fp4-e3m0": DataType("FP4 (E3M0)", 29.48, nf4_tables.float_table(3, 0)),
    "nf4": DataType("NF4", 27.41, nf4_tables.code_table()),
}
SOURCES = {
    "normal": f"{NORMAL:,} draws from N(0, 1), NumPy's default generator, seed {SEED}",
    "minilm-l6": "all-MiniLM-L6-v2, the linear layers of its blocks; published in float32",
    "smollm2-135m": "SmolLM2-135M-Instruct, the linear layers of its blocks; from a file in 4 bits (Q4_1: 16 even "
    "steps in a block of 32), so these weights lie on an even grid already, and the error is that of rounding them a "
    "second time",
}


def weights(source: str) -> Iterator[Tensor]:
    """The tensors of a source, float32."""
    if source == "normal":
        yield torch.from_numpy(np.random.default_rng(SEED).standard_normal(NORMAL, dtype=np.float32))
        return
    backbone = load(source, "generation" if source == "smollm2-135m" else "classification", 2)
    for site in backbone.sites.linear():
        yield backbone.net.get_submodule(site.path).dense_weight()


def rounded(weight: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weight in blocks (blocks, 64), its values in the table (blocks, 64), and the blocks' absmax (blocks, 1)."""
    blocks = weight.reshape(-1, nf4.BLOCK)
    absmax = blocks.abs().amax(1, keepdim=True)
    scaled = blocks * (1.0 / absmax.clamp(min=1e-38))
    codes = torch.bucketize(scaled, (table[:-1] + table[1:]) / 2, out_int32=True)
    return blocks, table.index_select(0, codes.view(-1)).view_as(blocks), absmax


def doubly_quantised(absmax: Tensor) -> Tensor:
    """What double quantisation gives back for the absmax (blocks, 1): the 8-bit type, 256 blocks to a scale."""
    table = nf4_tables.dynamic_table()
    offset = absmax.mean()
    parts = []
    for part in (absmax - offset).split(nf4.STATISTICS_BLOCK):
        scale = part.abs().max()
        scaled = part * (1.0 / scale.clamp(min=1e-38))
        parts.append(table[torch.bucketize(scaled, (table[:-1] + table[1:]) / 2)] * scale + offset)
    return torch.cat(parts)


def errors(weight: Tensor, table: Tensor) -> tuple[float, float]:
    """The sum of squared errors with float32 absmax, and with doubly quantised absmax."""
    blocks, values, absmax = rounded(weight, table)
    plain, double = (_squares((values * by).sub_(blocks)) for by in (absmax, doubly_quantised(absmax)))
    return plain, double


def _squares(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2


def measure(source: str, tensors: Iterable[Tensor]) -> dict[str, Any]:
    """The source's row of the JSON: sizes, and by type the error with either absmax and in how many tensors it wins."""
    sums = {name: [0.0, 0.0] for name in TYPES}
    best = dict.fromkeys(TYPES, 0)
    norm, count, number = 0.0, 0, 0
    stored = {"float32": 0, "double": 0}
    for weight in tensors:
        found = {name: errors(weight, kind.table) for name, kind in TYPES.items()}
        best[min(found, key=lambda name: found[name][0])] += 1
        for name, both in found.items():
            sums[name] = [a + b for a, b in zip(sums[name], both, strict=True)]
        norm, count, number = norm + _squares(weight), count + weight.numel(), number + 1
        for way, double in (("float32", False), ("double", True)):
            stored[way] += nf4.stored_bytes(weight.numel(), double=double)
    return {
        "source": source,
        "what": SOURCES[source],
        "weights": count,
        "tensors": number,
        "bits_per_weight": {way: 8 * size / count for way, size in stored.items()},
        "error": {
            name: {"float32": (plain / norm) ** 0.5, "double": (double / norm) ** 0.5}
            for name, (plain, double) in sums.items()
        },
        "smallest_in_tensors": best,
    }


def against_the_paper(row: dict[str, Any], paper: dict[str, float]) -> list[list[str]]:
    """Pairs (better in the paper, worse in the paper) of types whose errors are the other way round."""
    error = {name: both["float32"] for name, both in row["error"].items()}
    return [[a, b] for a in paper for b in paper if paper[a] < paper[b] and error[a] >= error[b]]


def figures() -> dict[str, Any]:
    """All that the JSON holds."""
    paper = {name: kind.paper for name, kind in TYPES.items() if kind.paper is not None}
    rows = []
    for source in SOURCES:
        rows.append(measure(source, weights(source)))
        print(f"{source}: {rows[-1]['error']}", file=sys.stderr, flush=True)
    return {
        "what": "relative error ||w - w'|| / ||w|| of 4-bit data types, absmax scaling; no perplexity is measured here",
        "block": nf4.BLOCK,
        "statistics_block": nf4.STATISTICS_BLOCK,
        "types": {
            n: {"label": t.label, "table": t.table.tolist(), "paper_perplexity": t.paper} for n, t in TYPES.items()
        },
        "paper": f"{PAPER}; NF4's figure is with double quantisation",
        "rows": [{**row, "ordered_otherwise_than_in_the_paper": against_the_paper(row, paper)} for row in rows],
    }


HEAD = (
    "source",
    "type",
    "error, float32 absmax",
    "error, double quantisation",
    "smallest in",
    "paper's perplexity",
)


def cells(found: dict[str, Any]) -> list[list[str]]:
    """The table's rows as text, from the JSON; the types as the paper orders them."""
    lines = []
    for row in found["rows"]:
        for name, kind in found["types"].items():
            error = row["error"][name]
            wins = f"{row['smallest_in_tensors'][name]} of {row['tensors']} tensors"
            percents = [f"{100 * error[way]:.3f} %" for way in ("float32", "double")]
            lines.append([row["source"], kind["label"], *percents, wins, f"{kind['paper_perplexity']:.2f}"])
    return lines


def as_csv(found: dict[str, Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([HEAD, *cells(found)])
    return out.getvalue()


def as_markdown(found: dict[str, Any]) -> str:
    """The table, with what it is not, and where it and the paper differ."""
    labels = {name: kind["label"] for name, kind in found["types"].items()}
    bits = found["rows"][-1]["bits_per_weight"]
    lines = [
        "# Error of 4-bit data types",
        "",
        f"Made by `python scripts/nf4_error.py`: {found['what']}.",
        f"Blocks of {found['block']}; whatever the type, {bits['float32']:.3f} bits a weight with float32 absmax, "
        f"{bits['double']:.3f} with double quantisation.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---|---|" + "---:|" * (len(HEAD) - 2),
        *("| " + " | ".join(line) + " |" for line in cells(found)),
        "",
        *(f"- **{row['source']}**: {row['what']} ({row['weights']:,} weights)." for row in found["rows"]),
        f"- Paper: {found['paper']}. It does not follow that a type with a smaller error has the smaller perplexity.",
        "- E2M1 comes with two subnormals: a twelfth of the largest value by the standard, 1/192 in bitsandbytes.",
        "",
        "## The paper's order, and ours",
        "",
    ]
    sources: dict[str, list[str]] = {}
    for row in found["rows"]:
        pairs = [f"{labels[a]} better than {labels[b]}" for a, b in row["ordered_otherwise_than_in_the_paper"]]
        said = (
            f"not the same order. In the paper, and not by our error: {'; '.join(pairs)}" if pairs else "the same order"
        )
        sources.setdefault(said, []).append(row["source"])
    lines += [f"- {', '.join(names)}: {said}." for said, names in sources.items()]
    return "\n".join(lines) + "\n"


def drawing(found: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of the figure: a panel a source, a row a type, a point for each kind of absmax."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from peftbench.report.figures import style

    names = list(found["types"])
    largest = max(max(both.values()) for row in found["rows"] for both in row["error"].values())
    with style.drawing():
        figure = Figure(figsize=(11.0, 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(found["rows"]), sharey=True, sharex=True)
        for panel, row in zip(panels, found["rows"], strict=True):
            for way, filled in (("float32", True), ("double", False)):
                x = [100 * row["error"][name][way] for name in names]
                for y, name in enumerate(names):
                    colour = style.COLOURS[1] if name == "nf4" else style.COLOURS[0]
                    face, marker, size = (colour, "o", 6) if filled else ("none", "s", 10)
                    panel.plot(x[y], y, marker, ms=size, mec=colour, mfc=face, mew=1.4)
            panel.set_title(row["source"], loc="left", fontsize=10, color=style.MUTED)
            panel.set_xlim(0, 110 * largest)
            panel.grid(axis="y", visible=False)
        panels[0].set_yticks(
            range(len(names)), [f"{t['label']}\n({t['paper_perplexity']:.2f})" for t in found["types"].values()]
        )
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        figure.suptitle("Error of 4-bit data types", x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.supxlabel(
            "relative error ||w − w'|| / ||w||, %   (dot: float32 absmax, square: doubly quantised)\n"
            f"in brackets: mean perplexity in QLoRA's table 2; blocks of {found['block']}",
            fontsize=9,
        )
        yield from style.files("nf4_error", figure)


def write(found: dict[str, Any], folder: Path) -> None:
    """Table and figure, from what the JSON holds."""
    texts = {"nf4_error.md": as_markdown(found), "nf4_error.csv": as_csv(found)}
    for name, content in {**{n: t.encode() for n, t in texts.items()}, **dict(drawing(found))}.items():
        (folder / name).write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="table and figure from the JSON that is there")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder; default: %(default)s")
    options = parser.parse_args()
    file = options.results / "nf4_error.json"
    if not options.draw:
        options.results.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write(json.loads(file.read_text(encoding="utf-8")), options.results)
    print(f"wrote {options.results}")


if __name__ == "__main__":
    main()
