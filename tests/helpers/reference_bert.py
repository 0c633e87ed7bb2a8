"""BERT with a classification head, written out from its paper in float64: what methods are held against.

Nothing here comes from the engine or from transformers; only the names of the weights are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

HEADS = 2
EPSILON = 1e-12
Weights = Mapping[str, Tensor]
Linear = Callable[[str, Tensor], Tensor]  # (path of the layer, its input) -> its output
Sublayer = Callable[
    [str, int, Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor
]  # (role, layer, x = r, f, norm) -> f'
Prefix = Callable[[int], tuple[Tensor, Tensor]]  # layer -> keys and values, each (heads, length, head width)


def dense(w: Weights) -> Linear:
    """y = x W^T + b at every layer."""
    return lambda path, x: x @ w[f"{path}.weight"].T + w[f"{path}.bias"]


def norm(w: Weights, path: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + EPSILON).sqrt()
    return scaled * w[f"{path}.weight"] + w[f"{path}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def bert(
    w: Weights,
    ids: Tensor,  # (batch, length)
    mask: Tensor,  # (batch, length), 1 = a token
    linear: Linear | None = None,
    sublayer: Sublayer = lambda role, layer, x, f, norm: f,
    prefix: Prefix | None = None,
) -> Tensor:  # (batch, classes)
    linear = linear or dense(w)
    embed = "bert.embeddings"
    x = w[f"{embed}.word_embeddings.weight"][ids] + w[f"{embed}.position_embeddings.weight"][: ids.shape[1]]
    x = norm(w, f"{embed}.LayerNorm", x + w[f"{embed}.token_type_embeddings.weight"][0])
    layer = 0
    while f"bert.encoder.layer.{layer}.output.dense.weight" in w:
        here = f"bert.encoder.layer.{layer}"
        f = _attention(here, x, mask, linear, None if prefix is None else prefix(layer))
        after = f"{here}.attention.output.LayerNorm"
        f = sublayer("attn", layer, x, f, lambda h, after=after: norm(w, after, h))
        x = norm(w, after, f + x)
        f = linear(f"{here}.output.dense", gelu(linear(f"{here}.intermediate.dense", x)))
        after = f"{here}.output.LayerNorm"
        f = sublayer("ffn", layer, x, f, lambda h, after=after: norm(w, after, h))
        x = norm(w, after, f + x)
        layer += 1
    return linear("classifier", torch.tanh(linear("bert.pooler.dense", x[:, 0])))


def _attention(here: str, x: Tensor, mask: Tensor, linear: Linear, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    rows = x.shape[0]
    q, k, v = (
        linear(f"{here}.attention.self.{part}", x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for part in ("query", "key", "value")
    )  # each (batch, heads, length, head width)
    if prefix is not None:
        k = torch.cat([prefix[0].expand(rows, -1, -1, -1), k], dim=2)
        v = torch.cat([prefix[1].expand(rows, -1, -1, -1), v], dim=2)
        mask = torch.cat([mask.new_ones(rows, prefix[0].shape[1]), mask], dim=1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(mask[:, None, None, :] == 0, -math.inf).softmax(-1)
    return linear(f"{here}.attention.output.dense", (weights @ v).transpose(1, 2).flatten(2))
