"""Print how far our methods and other libraries' implementations of them lie apart, and write it to docs/oracles.md.

    python scripts/oracle_table.py

tests/helpers/oracle says what is compared and how weights are mapped; tests/methods/test_oracles.py asserts the bound.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from architectures import Zoo  # noqa: E402
from oracle.compare import CLOSE, LOOKS, compare  # noqa: E402
from oracle.registry import ARCHITECTURES, COUNTERPARTS  # noqa: E402

TITLES = {"output": "output", "gradient": "gradients", "merge": "merged weights", "steps": "five steps"}
INTRODUCTION = f"""# Independent implementations agree

Made by `python scripts/oracle_table.py`; `tests/methods/test_oracles.py` holds every number here to {CLOSE:.0e}.

Each method is set beside an implementation by other people with the same weights, in float64, on small random
networks. A number is the largest difference over the largest value, of

- **output**: the logits of a padded batch;
- **gradients**: every trained tensor's, of one scalar of all logits;
- **merged weights**: every weight of the network after merging;
- **five steps**: every trained tensor, and the logits, after five optimiser steps with weight decay on five batches.

A dash: the method never merges, or it is not comparable there (see below). Zero: equal to the last bit.
"""

NOTES = """
How weights are mapped:

- A fused layer for q, k and v (GPT-2, GPT-NeoX) is one layer for `peft`: updates of rank r of n of the three are an
  update of rank n r of the whole, with A's stacked and B's in blocks. Blocks that ours does not have are zero; their
  gradient in `peft` is not, so it is masked, and AdamW, which works number by number, then steps the others alike.
  Without the mask the two part ways at the first step.
- What `peft` does otherwise than ours on purpose is set to the same here and listed in [fidelity.md](fidelity.md):
  positions behind a prefix, the place of a prompt, AdaLoRA's 1e-5 and its orthogonality (left out), which layers are
  adapted by default.
- QLoRA and QDoRA: the weights are bitsandbytes' after quantisation and back, the updates are `peft`'s.

Bottleneck adapters and prefixes are held to the library `adapters` as well, by stored values
(`tests/methods/test_golden_adapters.py`, `scripts/golden_adapters.py`), on BERT and GPT-2, to the same bound; NF4 to
bitsandbytes, bit for bit (`tests/method/test_nf4.py`); GaLore to a computation in NumPy without a singular value
decomposition (`tests/methods/test_methods_rank.py`).
"""


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.0e}"


def rows(zoo: Zoo) -> list[list[str]]:
    found = []
    for name, counterpart in COUNTERPARTS.items():
        for architecture in ARCHITECTURES:
            looks = counterpart.looks(architecture)
            values = compare(counterpart, zoo[architecture]) if looks else {}
            shown = [number(values[look]) if look in looks else "–" for look in LOOKS]
            print(f"{name:36}{architecture:12}" + "".join(f"{text:>10}" for text in shown), flush=True)
            found.append([name, architecture, *shown])
    return found


def page(found: list[list[str]]) -> str:
    names = ("peft", "bitsandbytes", "transformers", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [INTRODUCTION, f"Versions: {versions}.\n", "| architecture | what is particular |", "|---|---|"]
    lines += [f"| {name} | {what} |" for name, what in ARCHITECTURES.items()]
    lines += ["", "| method | architecture | " + " | ".join(TITLES[look] for look in LOOKS) + " |", "|---" * 6 + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in found]
    lines += ["", "Not compared:", ""]
    for name, counterpart in COUNTERPARTS.items():
        for reason in dict.fromkeys(counterpart.without.values()):
            places = [place for place, why in counterpart.without.items() if why == reason]
            lines.append(f"- {name}, {' and '.join(places)}: {reason}")
    return "\n".join(lines) + "\n" + NOTES


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        text = page(rows(Zoo(Path(folder))))
    (ROOT / "docs" / "oracles.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
