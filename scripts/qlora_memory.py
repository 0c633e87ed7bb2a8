"""Predict the memory of QLoRA's own cases (arXiv:2305.14314), into results/paper/qlora_memory/qlora_memory.json.

python scripts/qlora_memory.py         # minutes; no weights are loaded
python -m peftbench figures qlora_memory

Every row is `peftbench estimate`: one simulated training step of batch 1 with 512 tokens, computing in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftbench.estimate.count import ModelQuery
from peftbench.estimate.step_estimate import Setting, estimate
from peftbench.method.layers import nf4

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "results" / "paper" / "qlora_memory" / "qlora_memory.json"
EVERY = "q k v o gate up down"
ROWS: list[tuple[str, str, str, dict[str, Any], bool]] = [  # name, model, method, hyperparameters, checkpointing
    *(
        (f"{model} {method}", model, method, hyper, True)
        for model in ("llama-7b", "llama-65b")
        for method, hyper in (("full", {}), ("lora", {"rank": 64, "roles": EVERY}), ("qlora", {"rank": 64}))
    ),
    ("llama-7b qlora 0.2 %", "llama-7b", "qlora", {"rank": 5}, True),  # 5 (in + out): 12.5 of 6,738 million
    ("llama-7b qlora 0.2 %, no checkpointing", "llama-7b", "qlora", {"rank": 5}, False),
]
WEIGHTS = 2**24  # of one layer, for the bits a weight


def rows() -> list[dict[str, Any]]:
    found = []
    for name, model, method, hyper, checkpointing in ROWS:
        setting = Setting(1, 512, "bfloat16", checkpointing=checkpointing, attention="flash")
        told = estimate(ModelQuery(model), method, hyper, setting)
        found.append({"name": name, **asdict(told)})
        print(f"{name}: {told.peak_bytes / 1e9:,.2f} GB", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FILE, help="the file; default: %(default)s")
    out = parser.parse_args().out
    bits = {
        way: 8 * nf4.stored_bytes(WEIGHTS, double=double) / WEIGHTS
        for way, double in (("float32", False), ("double", True))
    }
    found = {"what": "predicted peaks of one training step, bytes", "bits_per_weight": bits, "rows": rows()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
