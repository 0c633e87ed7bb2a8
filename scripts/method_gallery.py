"""Write docs/methods: the gallery, one card and one schematic for each method, and the cards' places in mkdocs.yml.

    python scripts/method_gallery.py [--check]

A card comes from the method's class, from the report of embedded_small, from docs/methods/estimates.json
(scripts/method_estimates.py), and from scripts/gallery/notes.yaml. The schematic shows where the method acts when it is
attached to a tiny encoder. With --check nothing is written, and the exit code says whether the files are up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from gallery import costs as records  # noqa: E402
from gallery import wording  # noqa: E402
from gallery.costs import UP, Costs  # noqa: E402
from gallery.figures import schematic  # noqa: E402
from gallery.touched import Touched, touched  # noqa: E402

from peftbench.method import catalogue, registry  # noqa: E402
from peftbench.method.catalogue import MethodFacts  # noqa: E402
from peftbench.verify.contract import networks  # noqa: E402

PLACE = ROOT / "docs" / "methods"
NOTES = ROOT / "scripts" / "gallery" / "notes.yaml"
MADE = "<!-- made by scripts/method_gallery.py -->\n"
KEYS = {"family", "fits", "against"}


def files() -> dict[str, str]:
    """Return every file of the gallery by its path from docs/methods."""
    facts, notes, costs = catalogue.read_methods(), _notes(), records.read()
    backbone = networks.make("tiny-encoder")
    places = {name: touched(cls, backbone) for name, cls in registry.discover().items()}
    if unknown := sorted(set(notes["methods"]) - set(facts)):
        raise SystemExit(f"{NOTES}: there is no method {', '.join(unknown)}")
    notes["methods"] |= {name: {"family": "others"} for name in facts if name not in notes["methods"]}
    made = {"index.md": gallery(facts, notes, costs, places)}
    for name, fact in facts.items():
        made[f"{name}.md"] = card(fact, notes["methods"][name], costs, places[name])
        made[f"figures/{name}.svg"] = schematic(name, places[name])
    return made


def card(f: MethodFacts, note: Mapping[str, str], costs: Costs, place: Touched) -> str:
    """Return the page of one method."""
    summary, _, rest = f.doc.partition("\n\n")
    file = f"methods/{Path(f.source).name}"
    lines = [
        MADE,
        f"# {f.name}\n",
        f"{' '.join(summary.split())}\n",
        f'<p class="formula">{wording.formula(f.formula)}</p>\n',
        f"![Where {f.name} acts](figures/{f.name}.svg)\n",
        *([f"{wording.linked(' '.join(rest.split()))}\n"] if rest else []),
        "| | |",
        "|---|---|",
        f"| paper | {wording.linked(f.paper)} |",
        f"| trains | {f.size_formula or 'see the file'} |",
        f"| size knob | {f'`{f.size_knob}`, solved by a budget of parameters' if f.size_knob else 'none: one size'} |",
        *([f"| needs | {f.needs} |"] if f.needs else []),
        f"| merges | {merges(place)} |",
        f"| learning rate | {f.lr:g} ({wording.linked(f.lr_source)}) |",
        f"| file | [`{file}`]({UP}/{file}), version {f.version} |",
        "",
        "## When it fits, and when not\n",
        *([f"- **Fits:** {note['fits']}"] if "fits" in note else []),
        *([f"- **Speaks against it here:** {note['against']}"] if "against" in note else []),
        f"- **Known weaknesses:** {wording.sentence(wording.linked(' '.join(f.caveats.split())))}\n",
        "## Measured\n",
        records.measured(costs, f.name) + "\n",
        "## On a large model\n",
        records.predicted(costs, f.name) + "\n",
        "## Hyperparameters\n",
        wording.hyperparameters(f) + "\n",
        wording.tuning(f) + "\n",
        "## Try it, check it\n",
        f"    python -m peftbench run quickstart --only method={f.name} --only method=full",
        f"    python -m peftbench methods {f.name}",
        f"    python -m peftbench check-method {f.name}\n",
        "The last one holds the method to [the contract](../reviewer.md). [All methods](index.md).",
    ]
    return "\n".join(lines) + "\n"


def merges(place: Touched) -> str:
    """Say whether the method folds into the weights."""
    if place.merges is None:
        return "no\u00a0need, nothing is added"
    return "yes, into the weights" if place.merges else "never"


def gallery(facts: Mapping[str, MethodFacts], notes: Any, costs: Costs, places: Mapping[str, Touched]) -> str:
    """Return the page of all methods."""
    lines = [
        MADE,
        "# Methods\n",
        f"{len(facts)} methods, each written from its paper in one file of [methods/]({UP}/methods). Each has a card: "
        "where it acts, what it costs, how it scored, when it fits and when not. In the figures, grey is frozen and "
        "striped orange trains.\n",
        *_table(facts, costs, places),
        "",
        f"Scores, peaks and steps are relative to full fine-tuning, over {len(costs.tasks)} tasks of "
        f"[`{records.SET}`]({UP}/results/reference/{records.SET}/report/report.md). The peak on llama-3.1-8b is "
        "predicted, for one text of 512 tokens "
        "in bfloat16. [What this scale cannot say](../findings.md#what-this-scale-cannot-say).\n",
    ]
    for key, (title, says) in notes["families"].items():
        names = [name for name, note in notes["methods"].items() if note["family"] == key]
        if not names:
            continue
        lines += [f"## {title}\n", f"{says}\n", '<div class="grid cards" markdown>\n']
        for name in names:
            summary = " ".join(facts[name].doc.partition("\n\n")[0].split())
            lines.append(
                f"-   [**{name}**]({name}.md)\n\n    ![Where {name} acts](figures/{name}.svg)\n\n    {summary}\n"
            )
        lines.append("</div>\n")
    lines.append("Your own method stands beside these from one file: [how](../own-method.md).")
    return "\n".join(lines) + "\n"


def _table(facts: Mapping[str, MethodFacts], costs: Costs, places: Mapping[str, Touched]) -> list[str]:
    lines = [
        "| method | score / full [95 %] | peak / full | step / full | trainable | merges | peak on 8 B, GB |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    rows = [(row, name) for name in facts for row in costs.average.get(name, ())]
    for row, name in sorted(rows, key=lambda found: -float(found[0]["relative"])):
        large = costs.estimates["methods"].get(name, {}) if row["method"] == name else {}  # at the defaults only
        peak = f"{large['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in large else "refused" if large else "—"
        lines.append(
            f"| [{row['method']}]({name}.md) | {records.score(row)} | {records.ratio(row, 'peak_memory_ratio')} "
            f"| {records.ratio(row, 'step_ratio')} | {records.whole(row['trainable'])} "
            f"| {merges(places[name]).partition(',')[0]} | {peak} |"
        )
    return lines


def _notes() -> Any:
    notes = yaml.safe_load(NOTES.read_text(encoding="utf-8"))
    for name, note in notes["methods"].items():
        if not {"family", "fits"} <= set(note) <= KEYS or note["family"] not in notes["families"]:
            raise SystemExit(
                f"{NOTES}: {name} has a family of the list, fits, and maybe against; it has {sorted(note)}"
            )
    return notes


def main() -> None:
    made = {PLACE / path: text for path, text in files().items()}
    there = {path for path in PLACE.rglob("*") if path.suffix in (".md", ".svg")}
    if "--check" in sys.argv[1:]:
        old = [p for p, text in made.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
        names = sorted(p.relative_to(ROOT).as_posix() for p in {*old, *(there - set(made))})
        sys.exit(f"out of date: {', '.join(names)}; run python scripts/method_gallery.py" if names else 0)
    for path in there - set(made):
        path.unlink()
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
