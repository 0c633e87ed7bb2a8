"""QLoRA and QDoRA against bitsandbytes' NF4 with `peft`'s LoRA and DoRA over its dequantised weights.

bitsandbytes computes in float32 at most, so its layer cannot be held to nine digits: its weights can. Without double
quantisation, whose bytes differ from bitsandbytes' where its rounding misses the nearest (tests/method/test_nf4.py).
"""

from __future__ import annotations

from torch import Tensor

from oracle.compare import Counterpart, Theirs
from oracle.lowrank import dora, lora
from oracle.networks import Ours
from oracle.pairs import layer


def rounded(weight: Tensor) -> Tensor:
    """`weight` (out, in), rows of whole blocks of 64, after bitsandbytes' quantisation and back."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight.float().contiguous(), blocksize=64, quant_type="nf4")
    return functional.dequantize_4bit(packed, state)


def quantise(ours: Ours) -> None:
    for site in ours.backbone.sites.linear():
        pair = layer(ours.plain, site.path).pair("weight")
        pair.write(rounded(pair.read()))


def qlora(ours: Ours) -> Theirs:
    quantise(ours)
    return lora(ours)


def qdora(ours: Ours) -> Theirs:
    quantise(ours)
    return dora(ours)


HYPER = {"rank": 3, "alpha": 12.0, "double_quant": False}
COUNTERPARTS = {"qlora": Counterpart("qlora", qlora, HYPER), "qdora": Counterpart("qdora", qdora, HYPER)}
