"""An adapter trained here, loaded by Hugging Face peft; and one that peft trained, imported here: equal logits?

    python scripts/peft_round_trip.py [--keep DIR]

On the real model minilm-l6 and texts of embedded/question_type, through the commands that a user has: `run` with
`save_adapters: true`, `export`, `import`. peft gets the plain model by transformers, from its directory. Prints the
largest difference of a logit each way, both networks in float64; exits 1 if one is above 1e-6. Needs
`pip install 'peft>=0.21'`; a minute on two cores, after the downloads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peftbench.backbones.source import locate
from peftbench.method.interop.trained_adapter import open_trained
from peftbench.tasks import open_task

MODEL, TASK, ALLOWED, TEXTS = "minilm-l6", "embedded/question_type", 1e-6, 48
EXPERIMENT = f"""
name: round_trip
backbone: {MODEL}
methods: [lora: {{rank: 4, lr: 6e-3, roles: q v o}}]
tasks: [{{task: {TASK}, limit_train: 256, limit_validation: 32, limit_test: 32}}]
budget: {{steps: 8, batch_size: 16, max_length: 32, seeds: 1}}
save_adapters: true
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a new directory for all files; without it they are deleted")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        differences = {"trained here, loaded by peft": there(folder), "trained by peft, imported here": back(folder)}
    for what, (difference, effect) in differences.items():
        print(f"{what}: largest difference of a logit {difference:.1e} (the adapter moves one by up to {effect:.1e})")
    return int(any(difference > ALLOWED for difference, _ in differences.values()))


def there(folder: Path) -> tuple[float, float]:
    """Train by an experiment file, export, load with peft."""
    from peft import PeftModel

    (folder / "round_trip.yaml").write_text(EXPERIMENT)
    peftbench("run", folder / "round_trip.yaml", "--results", folder / "results", "-q")
    (record,) = (folder / "results" / "runs").glob("lora*.json")
    peftbench("export", record, folder / "to_peft", "--to", "peft")
    net = plain()
    twin = PeftModel.from_pretrained(net, folder / "to_peft")
    return compared(twin, open_trained(record).backbone.net)


def back(folder: Path) -> tuple[float, float]:
    """Train with peft, save, import."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    twin = get_peft_model(plain(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=6e-3)
    rows = open_task(TASK).train[:128]
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        out = twin(**tokens([row.text for row in part]), labels=torch.tensor([row.label for row in part]))
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    twin.save_pretrained(folder / "by_peft")
    peftbench("import", folder / "by_peft", "--backbone", MODEL, "--out", folder / "imported.safetensors")
    return compared(twin, open_trained(folder / "imported.safetensors").backbone.net)


def plain() -> Any:
    """The model as transformers loads it, with a head for the task."""
    return AutoModelForSequenceClassification.from_pretrained(locate(MODEL), num_labels=len(open_task(TASK).labels))


def tokens(texts: list[str]) -> dict[str, Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(locate(MODEL))
    return dict(tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="pt"))


@torch.no_grad()
def compared(twin: Any, ours: nn.Module) -> tuple[float, float]:
    """The largest difference between the two, and the largest that the adapter makes."""
    inputs = tokens([row.text for row in open_task(TASK).test[:TEXTS]])
    theirs = twin.double().eval()(**inputs).logits
    with twin.disable_adapter():
        bare = twin(**inputs).logits
    here = ours.double().eval()(**inputs).logits
    return float((theirs - here).abs().max()), float((theirs - bare).abs().max())


def peftbench(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "peftbench", *map(str, words)], check=True)


if __name__ == "__main__":
    sys.exit(main())
