"""Sizes of memory as people write them: "24GB", "24GiB"."""

from __future__ import annotations

import re

from peftbench.errors import UserError, shown
from peftbench.plan.limits import MEMORY_BYTES

UNITS = {"B": 1, **{f"{p}B": 10 ** (3 * i) for i, p in enumerate("kMGT", 1)}}
UNITS |= {f"{p}iB": 2 ** (10 * i) for i, p in enumerate("KMGT", 1)}


def parsed_size(text: str) -> int:
    """Return the bytes of "24GB" (24 x 10^9) or "24GiB" (24 x 2^30).

    Raises:
        UserError: the text is not a size above 0 with a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    units = {name.lower(): size for name, size in UNITS.items()}
    if match is None or match[2].lower() not in units or float(match[1]) <= 0:
        raise UserError(f"given {shown(text)}; give a size such as 24GB (24 x 10^9 bytes) or 24GiB (24 x 2^30 bytes)")
    size = float(match[1]) * units[match[2].lower()]
    if size > MEMORY_BYTES:
        raise UserError(f"given {shown(text)}; give at most {MEMORY_BYTES / 10**12:,.0f}TB")
    return int(size)
