"""JSON files of a model's directory, read as data."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; an empty one where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes()) if is_regular(path) else {}
    except (OSError, ValueError, RecursionError):  # what cannot be read is reported where it is loaded
        return {}
    return content if isinstance(content, dict) else {}


def is_regular(path: Path) -> bool:
    """Whether a path leads to a regular file."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False
