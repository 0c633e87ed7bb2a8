"""Batches to measure with: of a task's usual length, or of an exact one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from peftbench.backbones.devices import on_device
from peftbench.backbones.load import Backbone
from peftbench.errors import UserError
from peftbench.tasks import batches
from peftbench.tasks.tokens import Encoded


def typical(data: Encoded, size: int, net: Backbone) -> dict[str, Tensor]:
    """A batch of `size` examples around the median length, as a run has it; examples repeat if there are fewer."""
    order = np.argsort(data.lengths, kind="stable")
    start = max(0, (len(order) - size) // 2)
    indices = np.resize(order[start : start + size], size)
    return on_device(batches.collate(data, indices, net.tokenizer.pad_token_id), net.device)


def exact(data: Encoded, size: int, length: int, net: Backbone) -> dict[str, Tensor]:
    """A batch (size, length) of the data's own tokens without padding: the texts in a row, cut into equal lengths.

    As in runs, prompts keep their mask, and other texts off the CPU do not. Raises `UserError` for a length that the
    network has no positions for.
    """
    room = getattr(net.net.config, "max_position_embeddings", None)
    if room is not None and length > room:
        raise UserError(
            f"a latency at {length} tokens cannot be measured: this {net.net.config.model_type} network has {room} "
            f"positions; make the lengths of profile.latency at most {room}"
        )
    ids = torch.from_numpy(np.resize(np.concatenate(data.ids), (size, length)).astype(np.int64))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if data.types is not None:
        batch["token_type_ids"] = torch.zeros_like(ids)
    return {k: v.to(net.device) for k, v in batch.items()} if net.kind == "generation" else on_device(batch, net.device)


def median_prompt(data: Encoded) -> int:
    """The median number of tokens of the prompts of a generation task."""
    if data.answer_start is None:
        raise ValueError("only generation tasks have prompts")
    return max(1, int(np.median(data.answer_start)))
