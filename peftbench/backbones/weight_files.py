"""The safetensors files of a model: which there are, what their headers say, and whether they are whole."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

from peftbench.backbones import model_folder, source
from peftbench.errors import UserError

_LONGEST_HEADER = 100_000_000  # bytes, as in safetensors


def files(origin: source.Origin) -> list[Path]:
    """Return the weight files of a model on this machine; of a hub model, those that have been downloaded."""
    return sorted(Path(origin.place).glob("*.safetensors")) if origin.place else []


def check_whole(origin: source.Origin) -> None:
    """Check that a model's directory has weight files, and that none is cut off.

    Args:
        origin: Where the model comes from. A preset or a hub model is not checked.

    Raises:
        UserError: There are no safetensors files, or one is not whole.
    """
    if origin.snapshot is not None or not Path(origin.place or "-").is_dir():
        return
    found = files(origin)
    if not found:
        pickled = model_folder.pickled(Path(origin.place))
        has = f"; {pickled} is a pickle, which is not read" if pickled else ""
        raise UserError(
            f"backbone {origin.model!r} has no weights: no *.safetensors in its directory{has}. Save it with "
            "save_pretrained, which writes safetensors"
        )
    for path in found:
        size = path.stat().st_size
        tensors = header(path)
        ends = [t["data_offsets"][1] for t in tensors.values()] if tensors else []
        if tensors is None or (ends and _data_begins(path) + max(ends) != size):
            raise UserError(f"backbone {origin.model!r}: {path.name} is not whole ({size:,} bytes); copy it again")


def header(path: Path) -> dict[str, Any] | None:
    """Return dtype, shape and place of each tensor in a file by its name; None if its header is not valid."""
    stat = path.stat()
    return _header(path, stat.st_size, stat.st_mtime_ns)


def _data_begins(path: Path) -> int:
    with path.open("rb") as f:
        return 8 + int(struct.unpack("<Q", f.read(8))[0])


@lru_cache
def _header(path: Path, size: int, changed: int) -> dict[str, Any] | None:
    """The header of a file with this size and time of change."""
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            read: Any = json.loads(f.read(length)) if length <= min(size, _LONGEST_HEADER) else None
        tensors = {name: tensor for name, tensor in read.items() if name != "__metadata__"}
        valid = all(isinstance(t["dtype"], str) and len(t["data_offsets"]) == 2 for t in tensors.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    return tensors if valid else None
