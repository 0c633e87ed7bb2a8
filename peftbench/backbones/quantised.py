"""Refuse checkpoints whose weights are quantised already: their codes are not weights that a method could change.

The configuration says so, or the headers of the weight files do. No weights are read.
"""

from __future__ import annotations

import json
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

from peftbench.backbones import source
from peftbench.errors import UserError

FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of safetensors that hold plain weights
_WEIGHT = re.compile(r"weight|proj|packed|blocks|kernel")  # in the last part of a tensor's name; masks and ids differ
_LONGEST_HEADER = 100_000_000  # bytes, as in safetensors


def check(origin: source.Origin, config: Any) -> None:
    """Check that neither a model's configuration nor the headers of its weight files say that it is quantised.

    Args:
        origin: Where the model comes from. Files of a hub model are read if its local cache has them.
        config: The model's configuration.

    Raises:
        UserError: The checkpoint is quantised.
    """
    if method := method_of(config):
        raise _refusal(origin.model, f"config.json says {method}")
    for path in _weight_files(origin):
        stat = path.stat()
        if found := _quantised_tensor(path, stat.st_size, stat.st_mtime_ns):
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


def _weight_files(origin: source.Origin) -> list[Path]:
    """Return the safetensors files of a model on this machine."""
    folder = Path(origin.place) if origin.place else None
    if folder is not None and not origin.local:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(origin.place, "config.json", revision=origin.options.get("revision"))
        folder = Path(cached).parent if isinstance(cached, str) else None
    return [] if folder is None else sorted(folder.glob("*.safetensors"))


@lru_cache
def _quantised_tensor(path: Path, size: int, changed: int) -> tuple[str, str] | None:
    """Return name and dtype of the first quantised weight in a file's header; None for none, or no valid header.

    An invalid file is reported where its weights are loaded. `size` and `changed` identify the file's content.
    """
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length)) if length <= min(size, _LONGEST_HEADER) else {}
        dtypes = {name: tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    for name, dtype in dtypes.items():
        coarse = dtype.startswith(("F8", "F6", "F4"))
        if dtype not in FLOATS and (coarse or _WEIGHT.search(name.rpartition(".")[2])):
            return name, dtype
    return None
