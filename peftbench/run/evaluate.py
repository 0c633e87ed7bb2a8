"""Predictions of a network on encoded examples, in the examples' own order."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from peftbench.backbones.devices import on_device
from peftbench.backbones.generation import no_settings
from peftbench.backbones.load import Backbone
from peftbench.backbones.losses import counted, loss_sum
from peftbench.backbones.sharded import is_sharded
from peftbench.run.parallel.ranks import ONE, Ranks
from peftbench.tasks import batches
from peftbench.tasks.tokens import Encoded

Check = Callable[[], None]  # called before each batch; raises `Abandoned` to stop


P = ParamSpec("P")
T = TypeVar("T")


def _without_gradients(
    work: Callable[Concatenate[Backbone, P], T],
) -> Callable[Concatenate[Backbone, P], T]:
    """Compute in inference mode. Shards cannot: what a pass gathers serves the next training step, too."""

    @wraps(work)
    def evaluated(backbone: Backbone, /, *args: P.args, **kwargs: P.kwargs) -> T:
        sharded = any(is_sharded(p) for p in backbone.net.parameters())
        with torch.no_grad() if sharded else torch.inference_mode():
            try:
                return work(backbone, *args, **kwargs)
            finally:
                if sharded:
                    backbone.net.reshard()  # without a backward pass, what is in no block stays gathered

    return evaluated


class NotFinite(Exception):
    """The network's outputs are no numbers, so that no prediction follows from them."""


@_without_gradients
def predict(
    backbone: Backbone, data: Encoded, batch_size: int, dtype: str, check: Check = lambda: None, ranks: Ranks = ONE
) -> list[Any]:
    """Predict a label for each example.

    Args:
        backbone: the network; it is put into evaluation mode.
        data: n examples.
        batch_size: examples that are evaluated together.
        dtype: "float32", or "bfloat16" for autocast.
        check: called before each batch.
        ranks: the processes that divide each batch; each gets all predictions.

    Returns:
        n class indices (classification) or numbers (regression).

    Raises:
        NotFinite: an output is NaN or infinite.
    """
    backbone.net.eval()
    # what the device computes is read at the end, so that it does not wait for each batch
    order, predicted, sound = list[int](), list[Tensor](), list[Tensor]()
    for indices, batch in _batches(backbone, data, batch_size, check):
        del batch["labels"]
        with backbone.computing(dtype):
            logits = ranks.joined(backbone.net(**ranks.part(batch)).logits.float(), len(indices))
        order += map(int, indices)
        sound.append(_is_finite(logits, backbone.kind))
        predicted.append(logits.argmax(-1) if backbone.kind == "classification" else logits.squeeze(-1))
    if sound and not bool(torch.stack(sound).all()):
        raise NotFinite("an output of the network became infinite or NaN")
    values: list[Any] = [None] * len(data.lengths)
    for i, value in zip(order, torch.cat(predicted).tolist() if predicted else [], strict=True):
        values[i] = value
    return values


@_without_gradients
def perplexity(
    backbone: Backbone, data: Encoded, batch_size: int, dtype: str, check: Check = lambda: None, ranks: Ranks = ONE
) -> float | None:
    """The perplexity of the answers; the arguments are those of `predict`.

    Returns:
        exp of the mean negative log-likelihood of the answers' tokens; None if that is too large for a number.

    Raises:
        NotFinite: the likelihood is NaN or infinite.
    """
    backbone.net.eval()
    losses, counts = list[Tensor](), list[Tensor]()  # read at the end, so that the device does not wait for each batch
    for _, batch in _batches(backbone, data, batch_size, check):
        counts.append(torch.as_tensor(counted("generation", batch["labels"])))
        batch = ranks.part(batch)
        labels = batch.pop("labels")
        with backbone.computing(dtype):
            logits = backbone.net(**batch).logits
        losses.append(ranks.sum(loss_sum("generation", logits, labels)))
    mean = sum(torch.stack(losses).tolist()) / max(1, sum(torch.stack(counts).tolist()))
    if not math.isfinite(mean):
        raise NotFinite(f"the log-likelihood of the answers became {mean}")
    return math.exp(mean) if mean < 700 else None


@_without_gradients
def generate(
    backbone: Backbone, data: Encoded, batch_size: int, dtype: str, longest: int, check: Check = lambda: None
) -> list[str]:
    """Greedy answers, written with a key-value cache; the other arguments are those of `predict`.

    Args:
        longest: the most tokens of an answer.

    Returns:
        n texts without special tokens.
    """
    backbone.net.eval()
    sharded = any(is_sharded(p) for p in backbone.net.parameters())  # then no process may stop before the others
    tokenizer = backbone.tokenizer
    texts = [""] * len(data.lengths)
    assert data.answer_start is not None  # a generation task
    for indices in batches.evaluation(data.answer_start, batch_size):
        check()
        batch = backbone.inputs(batches.prompts(data, indices, tokenizer.pad_token_id))
        has_encoder = data.decoder_start is not None  # it reads the prompt; the decoder has a first token of its own
        width = 1 if has_encoder else batch["input_ids"].shape[1]
        with backbone.computing(dtype), no_settings(backbone.net):  # greedy whatever a checkpoint asks for
            out = backbone.net.generate(
                **{k: v.to(backbone.device) for k, v in batch.items()},
                max_new_tokens=longest,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                synced_gpus=sharded,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **({"decoder_start_token_id": data.decoder_start} if has_encoder else {}),
            )
        for i, row in zip(indices, out[:, width:].cpu(), strict=True):
            texts[i] = tokenizer.decode(row, skip_special_tokens=True).strip()
    return texts


def _is_finite(logits: Tensor, kind: str) -> Tensor:
    """Whether the outputs are numbers, on their device. A class that is ruled out may have minus infinity."""
    sound = logits < math.inf if kind == "classification" else logits.isfinite()
    return sound.all()


def _batches(backbone: Backbone, data: Encoded, batch_size: int, check: Check) -> Any:
    for indices in batches.evaluation(data.lengths, batch_size):
        check()
        batch = batches.collate(data, indices, backbone.tokenizer.pad_token_id)
        yield indices, backbone.inputs(on_device(batch, backbone.device))
