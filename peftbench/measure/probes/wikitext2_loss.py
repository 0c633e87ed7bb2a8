"""How much a language model forgets: its loss on general text that no task trains on (after arXiv:2405.09673)."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.losses import IGNORED, loss_sum
from peftbench.measure.probes import CARDS, TrainedNetwork, file_of, language_model
from peftbench.tasks.tokenizing import called

CARD = CARDS["wikitext2_loss"]
WINDOWS, LENGTH = 32, 64  # 2,048 tokens; the first of each window is not predicted
BATCH = 16


@torch.inference_mode()
def measure(trained: TrainedNetwork) -> dict[str, Any]:
    """Measure the loss on WikiText-2.

    All runs with the same tokenizer use the same windows, so that runs can be compared window by window.

    Returns:
        "loss": mean cross-entropy in nats over all predicted tokens. "windows": the mean of each window. "tokens":
        number of predicted tokens. "sha256": hash of the text.

    Raises:
        UserError: The network is not a causal language model, or the text is missing.
    """
    backbone = language_model(CARD, trained)
    text = file_of(CARD, trained.data_dir).read_bytes()
    ids = windows(backbone.tokenizer, text.decode("utf-8"))
    backbone.net.eval()
    waiting = list[Tensor]()  # read at the end, so that the device does not wait for each window
    for batch in ids.split(BATCH):
        batch = batch.to(backbone.device)
        labels = batch.clone()
        labels[:, 0] = IGNORED  # it has no context; after a method's prompt it would otherwise be predicted
        inputs = backbone.inputs({"input_ids": batch, "attention_mask": torch.ones_like(batch), "labels": labels})
        labels = inputs.pop("labels")
        with backbone.computing(trained.dtype):
            logits = backbone.net(**inputs).logits
        waiting += [loss_sum("generation", a, b) for a, b in zip(logits.split(1), labels.split(1), strict=True)]
    losses, each = torch.stack(waiting).tolist(), LENGTH - 1
    return {
        "loss": sum(losses) / (each * len(losses)),
        "windows": [float(f"{loss / each:.7g}") for loss in losses],
        "tokens": each * len(losses),
        "sha256": hashlib.sha256(text).hexdigest(),
    }


def windows(tokenizer: Any, text: str) -> Tensor:
    """Return token ids (WINDOWS, LENGTH) of `text`, from equidistant starts, without special tokens.

    Raises:
        ValueError: The text is too short.
        UserError: The tokenizer cannot read the text.
    """
    ids = torch.tensor(called(tokenizer, text, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < WINDOWS * LENGTH:
        raise ValueError(f"WikiText-2's test text has {len(ids)} tokens here; {WINDOWS * LENGTH} are needed")
    starts = torch.arange(WINDOWS) * ((len(ids) - LENGTH) // (WINDOWS - 1))
    return torch.stack([ids[s : s + LENGTH] for s in starts.tolist()])
