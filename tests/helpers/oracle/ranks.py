"""VeRA, PiSSA and AdaLoRA against `peft`.

Fused layers as in `lowrank`: VeRA's shared pair is stacked in blocks, AdaLoRA's triplets side by side. What is not
comparable there: PiSSA, for `peft` decomposes the fused matrix and ours each of its three; AdaLoRA's steps, for `peft`
averages the importance of P over the fused layer's rows, two thirds of which are none of ours.
"""

from __future__ import annotations

from typing import Any

import peft
import torch

from oracle.compare import Counterpart, Theirs
from oracle.lowrank import block_of, fusion, lora, sites, target, wrapped
from oracle.networks import Ours
from oracle.pairs import Pair, positions

T = 10  # of AdaLoRA's training; the steps compared are before its final stage
WARMUP, FINAL = 0.1, 0.3


def vera(ours: Ours) -> Theirs:
    """Where nothing is fused, A and B are as `peft` draws them from the same seed."""
    method: Any = ours.method
    layers = sites(ours, "d")
    n = fusion(layers)
    config = peft.VeraConfig(
        r=n * method.rank,
        target_modules=list({item.path for item in layers.values()}),
        projection_prng_key=method.projection_seed,
    )
    twin = wrapped(ours, config)
    first = next(m for m in ours.net.modules() if hasattr(m, "projection")).projection
    A, B = twin.base_model.vera_A["default"], twin.base_model.vera_B["default"]
    if n > 1:
        A.copy_(torch.cat([first.A] * n))
        B.zero_()
    pairs = {}
    for path, item in layers.items():
        block = block_of(layers, path, method.rank)
        if n > 1:
            Pair(B, positions(B)[item.rows][:, block]).write(first.B)
        module = target(twin, item.path)
        d, b = module.vera_lambda_d["default"], module.vera_lambda_b["default"]
        pairs[f"{path}.d"] = Pair(d, positions(d)[block])
        pairs[f"{path}.b"] = Pair(b, positions(b)[item.rows])
    return Theirs(twin, pairs)


def pissa(ours: Ours) -> Theirs:
    """Both decompose the float32 weights; `peft` puts what is left into the base layer."""
    ours.plain.float()
    return lora(ours, init_lora_weights="pissa")


def adalora(ours: Ours) -> Theirs:
    """Without the orthogonality, for which `peft` has another formula; its 1e-5 beside the rank goes into alpha."""
    method: Any = ours.method
    layers = sites(ours, "Q")
    n, rank = fusion(layers), method.first_rank
    config = peft.AdaLoraConfig(
        init_r=n * rank,
        target_r=n * method.rank,
        lora_alpha=method.alpha / rank * (n * rank + 1e-5),
        tinit=int(WARMUP * T),
        tfinal=int(FINAL * T),
        deltaT=method.interval,
        beta1=method.beta1,
        beta2=method.beta2,
        total_step=T,
        target_modules=list({item.path for item in layers.values()}),
    )
    twin = wrapped(ours, config)
    pairs = {}
    for path, item in layers.items():
        block, module = block_of(layers, path, rank), target(twin, item.path)
        A, E, B = (getattr(module, f"lora_{letter}")["default"] for letter in "AEB")
        torch.nn.init.zeros_(B)
        pairs[f"{path}.Q"] = Pair(A, positions(A)[block])
        pairs[f"{path}.Lambda"] = Pair(E, positions(E)[block, 0])
        pairs[f"{path}.P"] = Pair(B, positions(B)[item.rows][:, block])
    return Allocated(twin, pairs, T)


class Allocated(Theirs):
    """Ranks are shared out after each step."""

    def after_step(self, step: int) -> None:
        self.net.base_model.update_and_allocate(step)


FUSED = ("gpt2", "gpt-neox")
WHOLE = dict.fromkeys(FUSED, "peft decomposes the fused q, k and v as one matrix")
MEANS = {f"{name} steps": "peft's importance of P is a mean over the fused layer's rows" for name in FUSED}
TRIPLETS = {"rank": 2, "initial_rank": 3, "gamma": 0.0, "warmup": WARMUP, "final": FINAL, "roles": "q v"}
COUNTERPARTS = {
    "vera": Counterpart("vera", vera, {"rank": 6}),
    "pissa": Counterpart("pissa", pissa, {"rank": 3, "alpha": 3.0}, without=WHOLE),
    "pissa, layers that nothing fuses": Counterpart("pissa", pissa, {"rank": 3, "alpha": 3.0, "roles": "o up down"}),
    "adalora": Counterpart("adalora", adalora, TRIPLETS, without=MEANS),
}
