"""Rehearse a GPU without one: every method on every network of the contract, on the meta device.

python scripts/rehearse.py [--all-settings] [--write docs/rehearsal.md]

Exit code 1 if a training step or an evaluation computes on the CPU or waits for the device where it need not.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

from peftbench.method.registry import discover
from peftbench.verify.contract import Case, skip_reason, variants
from peftbench.verify.contract.networks import NETWORKS
from peftbench.verify.contract.rehearsal import EXPECTED, PARTS, Rehearsal, rehearse, unexpected

TEXT = """# A GPU, rehearsed

`python scripts/rehearse.py --write docs/rehearsal.md` made this page. Every method takes training steps, evaluates and,
on a network that generates, writes {tokens} tokens on PyTorch's meta device, where tensors have shapes and no values.
Each cell is the most in one training step, with and without padding, or one evaluated batch (`--all-settings`: over
every setting of the method, as the tests marked `full` try them):
*tensors that are not on the device* / *readings that wait for the device*. A dash: the method refuses the network.

{table}

## Where a GPU is waited for

{waits}

Outside the step, a run waits for these:

- **The losses** are read every 20 steps and before each evaluation. A budget of seconds, and steps that are timed, wait
  after each step, by definition.
- **An evaluation** reads its predictions, or the sums of its losses, once at its end.
- **The best checkpoint** is copied to the CPU when it improves, so that it takes no device memory.
- **The check of trained weights** for infinite numbers reads one value after the last step.

AdaLoRA's budget, gradient clipping and quantised layers read nothing.
"""


def cell(rehearsals: list[Rehearsal]) -> str:
    """The most strays and waits of a usual step or an evaluation."""
    if not rehearsals:
        return "–"
    parts = ("step", "step without padding", "evaluation", "evaluation without padding")
    found = [
        max(sum(kind.get(p, Counter()).values()) for p in parts) for r in rehearsals for kind in (r.strays, r.waits)
    ]
    return f"{max(found[::2])} / {max(found[1::2])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="write the page to this file")
    parser.add_argument("--all-settings", action="store_true", help="every setting of each method, not its defaults")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows, wrong, waits = [], [], dict[tuple[str, str], Counter[str]]()
    for name, cls in sorted(discover().items()):
        cells = []
        for network in NETWORKS:
            cases = [Case(cls, hyper, network) for hyper in (variants(cls) if options.all_settings else [{}])]
            done = {str(c): rehearse(c) for c in cases if skip_reason(c) is None}
            wrong += [f"{case}: {what}" for case, r in done.items() for what in unexpected(r)]
            for r in done.values():
                for part in PARTS:
                    for place, number in r.waits.get(part, {}).items():
                        seen = waits.setdefault((part, place), Counter())
                        seen[network] = max(seen[network], number)
            cells.append(cell(list(done.values())))
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    table = [f"| method | {' | '.join(NETWORKS)} |", f"|---|{'---|' * len(NETWORKS)}", *rows]
    listed = ["| part | what, and where | most | on | why it stays |", "|---|---|---|---|---|"]
    for (part, place), seen in sorted(waits.items(), key=lambda kv: (PARTS.index(kv[0][0]), kv[0][1])):
        everywhere = "every network" if len(seen) > 2 and part != "generation" else "every network that generates"
        on = everywhere if len(seen) > 2 else ", ".join(sorted(seen))
        why = next((reason for words, reason in EXPECTED.items() if words in place), "**not expected**")
        listed.append(f"| {part} | {place} | {max(seen.values())} | {on} | {why} |")
    if options.write:
        from peftbench.verify.contract.rehearsal import TOKENS

        options.write.write_text(TEXT.format(tokens=TOKENS, table="\n".join(table), waits="\n".join(listed)))
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
