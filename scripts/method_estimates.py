"""Predict each method's training step on one large model, for the cards of docs/methods: docs/methods/estimates.json.

    python scripts/method_estimates.py

No weights are loaded; it takes about a minute. Run it after the estimates or the methods change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.step_estimate import Setting, estimate
from peftbench.method import registry

FILE = Path(__file__).resolve().parent.parent / "docs" / "methods" / "estimates.json"
MODEL, SETTING = "llama-3.1-8b", Setting(1, 512, "bfloat16")


def estimated(method: str) -> dict[str, Any]:
    """Return what a card shows of one method's step at its defaults; of a method that refuses the model, the reason."""
    try:
        found = estimate(ModelQuery(MODEL), method, {}, SETTING)
    except UserError as error:
        return {"refused": str(error)}
    return {
        "peak_bytes": found.peak_bytes,
        "trainable": found.trainable,
        "stored_bytes": found.stored_bytes,
        "flops": found.flops,
    }


def main() -> None:
    setting = {"model": MODEL, "batch": SETTING.batch, "seq": SETTING.seq, "dtype": SETTING.dtype}
    methods = {}
    for name in registry.discover():
        methods[name] = estimated(name)
        print(name, methods[name], flush=True)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({"setting": setting, "methods": methods}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
