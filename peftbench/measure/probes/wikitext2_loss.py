"""What a language model forgets: its loss on general text that no task trains on (after arXiv:2405.09673)."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.devices import autocast
from peftbench.backbones.losses import IGNORED, loss_sum
from peftbench.errors import UserError
from peftbench.measure.probes import Trained, wikitext_file

WINDOWS, LENGTH = 32, 64  # 2,048 tokens, of which the first of each window predicts only
BATCH = 16


@torch.inference_mode()
def measure(trained: Trained) -> dict[str, Any]:
    """{"loss": mean over all predicted tokens, "windows": the mean of each, "tokens": how many, "sha256": the text's}.

    The windows are the same for every run with the same tokenizer, so that runs compare window by window.
    """
    backbone = trained.edit.backbone
    if backbone.kind != "generation" or backbone.net.config.is_encoder_decoder:
        raise UserError(f"probe wikitext2_loss needs a causal language model; {type(backbone.net).__name__} is none")
    text = wikitext_file(trained.data_dir).read_bytes()
    ids = windows(backbone.tokenizer, text.decode("utf-8"))
    backbone.net.eval()
    losses = []
    for batch in ids.split(BATCH):
        batch = batch.to(backbone.device)
        labels = batch.clone()
        labels[:, 0] = IGNORED  # nothing stands before it; behind a method's prompt it would be predicted
        inputs = backbone.inputs({"input_ids": batch, "attention_mask": torch.ones_like(batch), "labels": labels})
        labels = inputs.pop("labels")
        with autocast(backbone.device, trained.dtype):
            logits = backbone.net(**inputs).logits
        losses += [loss_sum("generation", a, b).item() for a, b in zip(logits.split(1), labels.split(1), strict=True)]
    each = LENGTH - 1
    return {
        "loss": sum(losses) / (each * len(losses)),
        "windows": [float(f"{loss / each:.7g}") for loss in losses],
        "tokens": each * len(losses),
        "sha256": hashlib.sha256(text).hexdigest(),
    }


def windows(tokenizer: Any, text: str) -> Tensor:
    """(WINDOWS, LENGTH) token ids of `text`, from starts at equal distances; no special tokens are added."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < WINDOWS * LENGTH:
        raise ValueError(f"WikiText-2's test text has {len(ids)} tokens here; {WINDOWS * LENGTH} are needed")
    starts = torch.arange(WINDOWS) * ((len(ids) - LENGTH) // (WINDOWS - 1))
    return torch.stack([ids[s : s + LENGTH] for s in starts.tolist()])
