"""LoRA and its kin against `peft`.

Where the network has one fused layer for q, k and v, `peft` adapts it as one: updates of rank r of n of the three are
an update of rank n r of the whole, with A's stacked and the B's in blocks. The blocks outside are zero, and their
gradients, which ours does not have, are masked, so that they stay zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import peft
import peft.optimizers
import torch
from torch import nn

from oracle.compare import Counterpart, Theirs
from oracle.networks import DECAY, RATE, Ours
from oracle.pairs import Layer, Pair, layer, positions


def sites(ours: Ours, ending: str) -> dict[str, Layer]:
    """The paths of our state with this ending -> the layers of the untouched network."""
    names = [n.removesuffix(f".{ending}") for n in ours.trained if n.endswith(f".{ending}")]
    return {path: layer(ours.plain, path) for path in names}


def wrapped(ours: Ours, config: Any) -> Any:
    """The untouched network under `peft`, in float64."""
    twin = peft.get_peft_model(copy.deepcopy(ours.plain), config, autocast_adapter_dtype=False)
    return twin.double().eval()


def target(twin: Any, path: str) -> Any:
    """The module of `peft` that stands where the layer at `path` stood."""
    return twin.base_model.model.get_submodule(path)


def lora_config(ours: Ours, layers: dict[str, Layer], alpha_grows: Callable[[int], float], **more: Any) -> Any:
    """LoRA at these layers; a fused layer that takes n updates has n times the rank, and its scale is kept."""
    rank, alpha = ours.method.rank, ours.method.alpha  # type: ignore[attr-defined]
    count = {item.path: sum(other.path == item.path for other in layers.values()) for item in layers.values()}
    several = {path: n for path, n in count.items() if n > 1}
    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(count),
        rank_pattern={path: n * rank for path, n in several.items()},
        alpha_pattern={path: alpha_grows(n) * alpha for path, n in several.items()},
        **more,
    )


def block_of(layers: dict[str, Layer], path: str, rank: int) -> slice:
    """Which of a fused layer's directions belong to our layer at `path`."""
    order = [p for p, other in layers.items() if other.path == layers[path].path].index(path)
    return slice(order * rank, (order + 1) * rank)


def fusion(layers: dict[str, Layer]) -> int:
    """How many of our layers one of theirs holds: the same number everywhere, where a library knows one rank only."""
    paths = [item.path for item in layers.values()]
    (count,) = {paths.count(path) for path in paths}
    return count


def lora_pairs(twin: Any, layers: dict[str, Layer], rank: int) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for path, item in layers.items():
        module = target(twin, item.path)
        A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
        block = block_of(layers, path, rank)
        pairs[f"{path}.A"] = Pair(A, positions(A)[block])
        pairs[f"{path}.B"] = Pair(B, positions(B)[item.rows][:, block])
        nn.init.zeros_(B)
    return pairs


def lora(ours: Ours, alpha_grows: Callable[[int], float] = float, **more: Any) -> Theirs:
    layers = sites(ours, "A")
    twin = wrapped(ours, lora_config(ours, layers, alpha_grows, **more))
    return Theirs(twin, lora_pairs(twin, layers, ours.method.rank))  # type: ignore[attr-defined]


def dora(ours: Ours) -> Theirs:
    """The magnitudes of rows that no update touches stay the rows' own norms."""
    theirs = lora(ours, use_dora=True)
    for path, item in sites(ours, "m").items():
        m = target(theirs.net, item.path).lora_magnitude_vector["default"].weight
        theirs.pairs[f"{path}.m"] = Pair(m, positions(m)[item.rows])
    return theirs


class LoRAPlusTwin(Theirs):
    """Stepped by the optimiser that `peft` makes for LoRA+."""

    def optimizer(self, ours: Ours) -> torch.optim.Optimizer:
        ratio: float = ours.method.ratio  # type: ignore[attr-defined]
        return peft.optimizers.create_loraplus_optimizer(
            self.net, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=ratio, loraplus_weight_decay=DECAY, foreach=False
        )


def lora_plus(ours: Ours) -> Theirs:
    theirs = lora(ours)
    return LoRAPlusTwin(theirs.net, theirs.pairs)


def rslora(ours: Ours) -> Theirs:
    """The scale is alpha / sqrt(r): with n times the rank, alpha grows by sqrt(n)."""
    return lora(ours, math.sqrt, use_rslora=True)


COUNTERPARTS = {
    "lora": Counterpart("lora", lora, {"rank": 3, "alpha": 12.0}),
    "lora, every linear layer": Counterpart("lora", lora, {"rank": 3, "alpha": 12.0, "roles": "*"}),
    "dora": Counterpart("dora", dora, {"rank": 3, "alpha": 12.0}),
    "dora, every linear layer": Counterpart("dora", dora, {"rank": 3, "alpha": 12.0, "roles": "*"}),
    "rslora": Counterpart("rslora", rslora, {"rank": 3, "alpha": 12.0}),
    "lora_plus": Counterpart("lora_plus", lora_plus, {"rank": 3, "alpha": 12.0}),
}
