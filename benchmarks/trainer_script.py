"""One fine-tuning run as people write it today: a model, `datasets`, `peft` and the Trainer, one process a run.

    python benchmarks/trainer_script.py --model DIR --data GLUE_DIR --task glue/rte --method lora --lr 2e-3 --out DIR

The other side of benchmarks/grid.py. Nothing here knows peftbench. It trains what the suite trains by default: LoRA and
DoRA of rank 8 at q and v, (IA)^3 as published, a prefix of 10, and the head, pooler included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_dataset
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from scipy.stats import spearmanr
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

FOLDERS = {"glue/rte": "RTE", "glue/stsb": "STS-B"}
LABELS = ("entailment", "not_entailment")
HEAD = ["pooler", "classifier"]
FFN = r".*layer\.\d+\.output\.dense"  # the second layer of each feed-forward network


def main() -> None:
    args = arguments()
    set_seed(args.seed)
    regression = args.task == "glue/stsb"
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = tokenised(args.data / FOLDERS[args.task], tokenizer, args.length, regression)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1 if regression else 2)
    model = get_peft_model(model, config(args.method))
    for name, p in model.named_parameters():  # prefix tuning has no `modules_to_save`
        if any(part in name for part in HEAD) and "original_module" not in name:
            p.requires_grad_(True)
    trainer = Trainer(
        model,
        settings(args),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,  # pads each batch to its longest row
        compute_metrics=spearman if regression else accuracy,
        optimizers=(optimizer(model, args), None),
    )
    trainer.train()
    scores = trainer.evaluate()
    trainer.save_model(str(args.out))
    metric = "spearman" if regression else "accuracy"
    told = {"metric": metric, "value": float(scores[f"eval_{metric}"]), "steps": trainer.state.global_step}
    (args.out / "scores.json").write_text(json.dumps(told) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a directory or a hub id of a BERT")
    parser.add_argument("--data", type=Path, required=True, help="the folder of GLUE's official files")
    parser.add_argument("--task", choices=list(FOLDERS), required=True)
    parser.add_argument("--method", choices=["lora", "dora", "ia3", "prefix"], required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens kept of an example")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--head-lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def tokenised(folder: Path, tokenizer: Any, length: int, regression: bool) -> DatasetDict:
    files = {"train": str(folder / "train.tsv"), "validation": str(folder / "dev.tsv")}
    raw = load_dataset("csv", data_files=files, delimiter="\t", quoting=3)

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        out = tokenizer(rows["sentence1"], rows["sentence2"], truncation=True, max_length=length)
        out["labels"] = rows["score"] if regression else [LABELS.index(label) for label in rows["label"]]
        return out

    found: Dataset = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)
    return found


def config(method: str) -> Any:
    if method == "prefix":
        return PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=10)
    if method == "ia3":
        targets = rf".*\.(key|value)|{FFN}"
        return IA3Config(task_type="SEQ_CLS", target_modules=targets, feedforward_modules=FFN, modules_to_save=HEAD[:])
    return LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=16,
        target_modules=["query", "value"],
        use_dora=method == "dora",
        modules_to_save=HEAD[:],
    )


def optimizer(model: Any, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW with a rate for the head; one rate for both would do for no method but LoRA."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    head = [p for name, p in trained.items() if any(part in name for part in HEAD)]
    rest = [p for name, p in trained.items() if not any(part in name for part in HEAD)]
    groups = [{"params": rest}, {"params": head, "lr": args.head_lr}]
    return torch.optim.AdamW(groups, lr=args.lr, weight_decay=0.0, fused=True)


def settings(args: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(args.out),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        per_device_eval_batch_size=max(32, args.batch),
        lr_scheduler_type="linear",
        warmup_steps=round(0.1 * args.steps),
        max_grad_norm=1.0,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
        use_cpu=args.device == "cpu",
    )


def accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(found.predictions, axis=-1) == found.label_ids).mean())}


def spearman(found: Any) -> dict[str, float]:
    return {"spearman": float(spearmanr(found.predictions.squeeze(-1), found.label_ids).statistic)}


if __name__ == "__main__":
    main()
