"""Paths as callers give them."""

from __future__ import annotations

import os
from pathlib import Path

PathLike = str | os.PathLike[str]


def path(given: PathLike | None) -> Path | None:
    """Return the path that was given, if one was."""
    return None if given is None else Path(given)
