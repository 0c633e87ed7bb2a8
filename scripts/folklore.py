"""What is often said of sizes and memory, and what they are: results/paper/folklore/folklore.json and docs/folklore.md.

    python scripts/folklore.py [--measure]

The page is written from the JSON. With --measure the JSON is made first: some minutes, no weights are loaded. Memory is
`peftbench estimate`: one simulated training step at batch 1 with 512 tokens, gradient checkpointing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftbench.estimate.count import ModelQuery, count
from peftbench.estimate.step_estimate import Setting, estimate

ROOT = Path(__file__).resolve().parent.parent
FILE, PAGE = ROOT / "results" / "paper" / "folklore" / "folklore.json", ROOT / "docs" / "folklore.md"
Q_V = {"rank": 16, "roles": "q v"}
ROWS: list[tuple[str, str, str, dict[str, Any], str]] = [  # what is said, model, method, hyperparameters, dtype
    ("a 70 B model needs 320 GB in full fine-tuning", "llama-2-70b", "full", {}, "bfloat16"),
    ("a 70 B model needs 18 GB with LoRA", "llama-2-70b", "lora", Q_V, "bfloat16"),
    ("a 70 B model needs 10 GB with QLoRA", "llama-2-70b", "qlora", Q_V, "bfloat16"),
    ("full fine-tuning takes 16 to 20 bytes a parameter", "llama-2-7b", "full", {}, "bfloat16"),
    ("full fine-tuning takes 16 to 20 bytes a parameter", "llama-2-7b", "full", {}, "float32"),
    ("LoRA r=16 on q, v of Llama-2-7B has 4,194,304 parameters", "llama-2-7b", "lora", Q_V, "bfloat16"),
    ("the same at r=8", "llama-2-7b", "lora", {**Q_V, "rank": 8}, "bfloat16"),
    ("(IA)3 trains about 0.01 % of the parameters", "llama-2-7b", "ia3", {}, "bfloat16"),
    ("(IA)3 trains about 0.01 % of the parameters", "minilm-l6", "ia3", {}, "float32"),
    ("(IA)3 trains about 0.01 % of the parameters", "llama-2-70b", "ia3", {}, "bfloat16"),
]
HEAD = """# Sizes and memory that are often quoted

Made by `python scripts/folklore.py` from `results/paper/folklore/folklore.json`. Memory is predicted, not measured: the
peak of one training step at batch 1 with 512 tokens, gradient checkpointing and fused attention. In bfloat16 the
frozen weights are bfloat16 and what trains is float32 under autocast; AdamW's two averages are float32. *Weights* are
those of the base network alone. GB are 10^9 bytes.

| said | model | method | dtype | trainable | share of the base | weights, GB | peak, GB | bytes a parameter |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
"""


def measured() -> list[dict[str, Any]]:
    """Every row's estimate, in JSON."""
    found = []
    for said, model, method, hyper, dtype in ROWS:
        setting = Setting(1, 512, dtype, checkpointing=True, attention="flash")
        told = asdict(estimate(ModelQuery(model), method, hyper, setting))
        found.append({"said": said, "base": count(ModelQuery(model), method, hyper).base, **told})
        print(f"{model} {method} {dtype}: {told['peak_bytes'] / 1e9:,.2f} GB", flush=True)
    return found


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        f"| {r['said']} | {r['model']} | {r['method']}{_sizes(r['hyper'])} | {r['setting']['dtype']} "
        f"| {r['trainable']:,} | {r['trainable'] / r['base']:.4%} | {r['at_peak']['weights'] / 1e9:,.1f} "
        f"| {r['peak_bytes'] / 1e9:,.1f} | {r['peak_bytes'] / r['base']:.2f} |"
        for r in rows
    ]
    return HEAD + "\n".join(lines) + "\n"


def _sizes(hyper: dict[str, Any]) -> str:
    return f", r = {hyper['rank']} on {hyper['roles'].replace(' ', ' and ')}" if "rank" in hyper else ""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--measure", action="store_true", help="make the JSON first")
    if options.parse_args().measure:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps({"rows": measured()}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(FILE.read_text(encoding="utf-8"))["rows"]), encoding="utf-8")


if __name__ == "__main__":
    main()
