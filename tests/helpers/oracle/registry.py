"""All counterparts by the name of their row, and the architectures that each is compared on."""

from __future__ import annotations

from oracle import lowrank, prompts, quantised, ranks, vectors
from oracle.compare import Counterpart

ARCHITECTURES = {
    "bert": "BERT, classifier",
    "gpt2": "GPT-2: one fused layer for q, k and v, stored transposed",
    "gpt-neox": "GPT-NeoX: q, k and v fused by head, rotary embedding",
    "opt": "OPT: learned positions with an offset",
    "llama": "Llama: two of four heads' keys and values, rotary embedding, gated FFN",
    "qwen2": "Qwen2: as Llama, with biases on q, k and v",
}  # names of tests/helpers/architectures.py -> what is particular

COUNTERPARTS: dict[str, Counterpart] = {
    **lowrank.COUNTERPARTS,
    **quantised.COUNTERPARTS,
    **ranks.COUNTERPARTS,
    **vectors.COUNTERPARTS,
    **prompts.COUNTERPARTS,
}
