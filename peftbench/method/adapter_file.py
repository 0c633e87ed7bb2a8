"""Adapters on disk: safetensors with a JSON header. Nothing is ever unpickled."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftbench.backbones.load import Backbone
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.records import files, scratch
from peftbench.records.spec import RunSpec

FORMAT = 1
_DTYPES = {  # as a safetensors header spells them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> int:
    """Write an adapter file.

    Args:
        path: File to write.
        state: Tensors by name.
        header: Method, hyperparameters, backbone fingerprint and so on; JSON-ready.

    Returns:
        Size of the file in bytes.

    Raises:
        UserError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.sweep(path.parent)
    temporary = scratch.beside(path)
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in state.items()}, temporary, metadata=_metadata(header))
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the adapter {path}: {error}; free space or choose another --results") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


def size(state: Mapping[str, Tensor], header: Mapping[str, Any]) -> int:
    """Return the size in bytes of the file that `save` would write, from names and shapes alone.

    A safetensors file has eight bytes, a JSON header padded to a multiple of eight, and the tensors' data.

    Args:
        state: Tensors by name; they may be on the meta device.
        header: As in `save`.
    """
    listed: dict[str, Any] = {"__metadata__": _metadata(header)}
    end = 0
    for name, t in sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + t.numel() * t.element_size()
        listed[name] = {"dtype": _DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + 8 * math.ceil(len(text) / 8) + end


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an adapter file.

    Returns:
        Tensors by name, and the header.

    Raises:
        UserError: The file is damaged, or not one of this format.
    """
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


def name(spec: RunSpec) -> str:
    """Return the name of the file of a run's adapter, which a long label does not make too long for a file system."""
    return f"{files.readable(spec.slug)}--{spec.id}.safetensors"


def head_path(path: Path) -> Path:
    """Return the file of the task head that was trained with the adapter at `path`.

    It is a separate file, because the head does not count towards the adapter's size.
    """
    return path.with_suffix(".head.safetensors")


def save_head(path: Path, backbone: Backbone, header: Mapping[str, Any]) -> None:
    """Write the task head next to the adapter at `path`, with the adapter's header."""
    save(head_path(path), _head(backbone), header)


def load_head(path: Path, backbone: Backbone) -> None:
    """Load the head next to the adapter at `path` into the backbone.

    Raises:
        UserError: The head belongs to another task.
    """
    _take_head(load(head_path(path))[0], backbone, path)


def apply(path: Path, backbone: Backbone, plugins: Iterable[Path | str] = ()) -> Edit:
    """Put a trained adapter, and its head if there is one, on a backbone.

    `Edit.undo` removes the adapter, `Backbone.reset_head` the head.

    Args:
        path: The adapter file.
        backbone: The backbone as loaded.
        plugins: Python files that register further methods.

    Returns:
        The edit that holds the adapter.

    Raises:
        UserError: The adapter has another backbone, size or number of labels.
    """
    state, header = load(path)
    if header["backbone"] != backbone.fingerprint:
        raise UserError(
            f"{path} was trained on another backbone ({header['backbone'][:16]}, this is "
            f"{backbone.fingerprint[:16]}); load the one that its record names"
        )
    edit = Edit(backbone)
    method = make(find(header["method"], plugins), header["hyper"], where=str(path))
    method.attach(edit)
    method.finish(edit)  # the saved state is the one after `finish`
    try:
        edit.load(state)
        if head_path(path).exists():
            load_head(path, backbone)
    except UserError:
        edit.undo()
        raise
    return edit


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    return {"peftbench": json.dumps({"format": FORMAT, **header}, sort_keys=True)}


def _head(backbone: Backbone) -> dict[str, Tensor]:
    own = {id(p) for p in backbone.head_parameters()}
    return {name: p for name, p in backbone.parameters.items() if id(p) in own}


def _take_head(state: Mapping[str, Tensor], backbone: Backbone, path: Path) -> None:
    own = _head(backbone)
    if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in own.items()}:
        raise UserError(f"the head beside {path} is for another task; load the backbone with that task's labels")
    backbone.save_snapshot()
    with torch.no_grad():
        for name, p in own.items():
            p.data = state[name].to(p.device)
