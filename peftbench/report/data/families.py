"""The family of each method, by what it trains: the order in which the page groups the rows of a table."""

from __future__ import annotations

OTHERS = "Other methods"
FAMILIES = {
    "All weights": ("full", "galore"),
    "Low-rank updates": ("lora", "lora_plus", "rslora", "pissa", "adalora", "dora", "vera"),
    "Low-rank updates of a quantized base": ("qlora", "qdora"),
    "Bottleneck layers": ("adapter",),
    "Prompts and prefixes": ("prefix", "prompt"),
    "Scales, biases and norms": ("ia3", "bitfit", "layernorm"),
    "Head only": ("linear_probe",),
}
ORDER = (*FAMILIES, OTHERS)
_OF = {method: family for family, methods in FAMILIES.items() for method in methods}


def of(method: str) -> str:
    """The family of a method by its name; `OTHERS` for one that is not ours.

    >>> of("rslora"), of("my_plugin")
    ('Low-rank updates', 'Other methods')
    """
    return _OF.get(method, OTHERS)
