"""Record the steps that the calculator's page replays, into peftbench/estimate/calculator/recorded/.

Each family of models is recorded once, on a small network whose sizes can be read (docs/calculator.md). A recording
takes some four seconds. What is done is kept in build/calculator and not done again; remove it after a change of the
simulation. `--pack` writes what there is into the package's files.

    python scripts/calculator_grid.py llama qwen2 --minutes 20
    python scripts/calculator_grid.py --pack
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from peftbench import cache
from peftbench.errors import UserError
from peftbench.estimate.calculator import facts, families, packed, page, settings
from peftbench.estimate.calculator.recording import record
from peftbench.estimate.run.calibrate import CODE

BUILD = Path(__file__).parent.parent / "build" / "calculator"


def main() -> None:
    """Record the families that are named, or pack all recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="such as llama, llama-mha, qwen2; with -tied for full fine-tuning")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time")
    parser.add_argument(
        "--only", nargs="*", default=[], help="parts of the recordings' names, each of which must occur"
    )
    parser.add_argument("--pack", action="store_true", help="write the package's files")
    parser.add_argument("--facts", action="store_true", help="write the counts of models and methods")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    for family in args.families:
        _record(family, end, args.only)
    if args.facts:
        facts.write()
    if args.pack:
        packed.pack(BUILD)
        page.COMMON.write_text(json.dumps(page.common_rows(), indent=0) + "\n", encoding="utf-8")


def _record(named: str, end: float, only: list[str]) -> None:
    family, tied = named.removesuffix("-tied"), named.endswith("-tied")
    folder = settings.folder_of(family, tied, BUILD)
    folder.mkdir(parents=True, exist_ok=True)
    code = cache.code_key(*CODE)
    with tempfile.TemporaryDirectory() as network:
        values = families.readable(family, tied, Path(network))
        period = families.period_of(families.configuration(families.first_of(family)))
        for step in settings.steps():
            path = folder / f"{step.key.replace('|', '+')}.json"
            if not all(part in step.key for part in only) or (
                tied and not step.sharded and step.method not in ("full", "galore")
            ):
                continue
            if time.monotonic() > end:
                return
            if path.exists():
                continue
            began = time.monotonic()
            texts = {"b": values["b"] if step.many else 1}
            how = network, step.made(values["r"]), step.setting(), {**values, **texts}, period
            try:
                made = packed.as_json(record(*how))
            except (UserError, ValueError) as error:
                print(f"{family} {step.key}: {error}", flush=True)
                made = {"refused": str(error)}
            path.write_text(json.dumps({"code": code, "key": step.key, **made}), encoding="utf-8")
            print(f"{family} {step.key}: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
