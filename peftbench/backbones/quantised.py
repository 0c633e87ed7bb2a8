"""Refuse checkpoints whose weights are quantised already: their codes are not weights that a method could change.

The configuration says so, or the headers of the weight files do. No weights are read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peftbench.backbones import source, weight_files
from peftbench.errors import UserError

FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of safetensors that hold plain weights
# the last part of the name of a tensor that holds weights; masks and ids differ
_WEIGHT = re.compile(r"weight|proj|packed|blocks|kernel$|^W_q$|^codes$")


def check(origin: source.Origin, config: Any) -> None:
    """Check that neither a model's configuration nor the headers of its weight files say that it is quantised.

    Args:
        origin: Where the model comes from. Of a hub model, the files that have been downloaded are read.
        config: The model's configuration.

    Raises:
        UserError: The checkpoint is quantised.
    """
    if method := method_of(config):
        raise _refusal(origin.model, f"config.json says {method}")
    for path in weight_files.files(origin):
        if found := _quantised_tensor(path):
            raise _refusal(origin.model, f"{path.name} holds {found[0]} as {found[1]}")


def check_network(net: Any) -> None:
    """Check that a network in memory is not quantised.

    Raises:
        UserError: It is.
    """
    if method := method_of(net.config):
        raise _refusal(type(net).__name__, f"its configuration says {method}")
    for name, p in net.named_parameters():
        if not p.dtype.is_floating_point or p.dtype.itemsize < 2:
            raise _refusal(type(net).__name__, f"{name} is {str(p.dtype).removeprefix('torch.')}")


def method_of(config: Any) -> str:
    """Return the method by which a configuration, or one inside it, says that its weights are quantised; else ""."""
    inside = [v for v in vars(config).values() if hasattr(v, "model_type")]
    for one in (config, *inside):
        for key in ("quantization_config", "compression_config"):
            said = getattr(one, key, None)
            if said:
                facts = said if isinstance(said, dict) else vars(said)
                method = facts.get("quant_method") or facts.get("quantization_method") or facts.get("format") or key
                bits = next((n for n in (4, 8) if facts.get(f"load_in_{n}bit")), facts.get("bits"))
                return f"{getattr(method, 'value', method)}{f', {bits} bits' if bits else ''}"
    return ""


def _refusal(model: str, found: str) -> UserError:
    return UserError(
        f"backbone {model!r} is quantised already: {found}. Methods change plain weights; give the checkpoint that is "
        "not quantised (float32, bfloat16 or float16), and use the method qlora to train on 4-bit weights"
    )


def _quantised_tensor(path: Path) -> tuple[str, str] | None:
    """Return name and dtype of the first quantised weight in a file; None for none, or where the header is not valid.

    An invalid file is reported where its weights are loaded.
    """
    for name, tensor in (weight_files.header(path) or {}).items():
        coarse = tensor["dtype"].startswith(("F8", "F6", "F4"))
        if tensor["dtype"] not in FLOATS and (coarse or _WEIGHT.search(name.rpartition(".")[2])):
            return name, tensor["dtype"]
    return None
