"""Adapters on disk: safetensors with a JSON header; nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftbench.errors import UserError

FORMAT = 1


def save(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> int:
    """Write tensors and header (method, hyperparameters, backbone fingerprint ...); returns the file's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True)
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in state.items()}, path, metadata={"peftbench": text})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the adapter {path}: {error}; free space or choose another --results") from error
    return path.stat().st_size


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header. Raises `UserError` for a file that is damaged or not ours."""
    try:
        with safe_open(path, framework="pt") as f:
            header = json.loads((f.metadata() or {}).get("peftbench", "null"))
            state = {name: f.get_tensor(name).clone() for name in f.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a readable adapter file: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(
            f"{path} has no peftbench header of format {FORMAT}; it was written by another program or version"
        )
    return state, header
