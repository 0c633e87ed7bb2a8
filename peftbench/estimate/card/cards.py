"""The cards that a step may run on: memory, rates and power, from one data file with its sources (cards.yaml)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from peftbench.errors import unknown

FILE = Path(__file__).with_name("cards.yaml")


@dataclass(frozen=True)
class Card:
    """One card. Rates are of dense matrix products with float32 accumulation.

    Attributes:
        name: Name in the file.
        memory_gib: What a process sees, in GiB.
        bandwidth: Of the memory, bytes a second.
        cache_mb: The last cache before the memory, in 2^20 bytes.
        bfloat16: Operations a second in bfloat16; None where the card has no such products.
        float32: Operations a second in float32, without TF32.
        tf32: Operations a second in TF32; None where the card has none.
        watts: Power limit.
        link: Bytes a second to another card or the host, one direction.
        capability: CUDA's compute capability, or AMD's architecture.
        source: Documents that state the figures.
        float16: Operations a second in float16, where it is not that of bfloat16.
        unchecked: Fields for which no public statement was found.
    """

    name: str
    memory_gib: float
    bandwidth: float
    cache_mb: float
    bfloat16: float | None
    float32: float
    tf32: float | None
    watts: float
    link: float
    capability: str
    source: str
    float16: float | None = None
    unchecked: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> int:
        """What a process sees, in bytes."""
        return int(self.memory_gib * 2**30)

    @property
    def cache(self) -> int:
        """Bytes of the last cache before the memory."""
        return int(self.cache_mb * 2**20)

    def rate(self, dtype: str) -> float:
        """Return operations a second of products of a dtype, "bfloat16" or another; float32's where it has no own."""
        own = {"bfloat16": self.bfloat16, "float16": self.float16 or self.bfloat16}.get(dtype)
        return self.float32 if own is None else own


@cache
def cards() -> dict[str, Card]:
    """Return every known card by its name."""
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for entry in entries.values():
        entry["unchecked"] = tuple(entry.get("unchecked", ()))
    return {name: Card(name, **entry) for name, entry in entries.items()}


def card(name: str) -> Card:
    """Return a card. "A100 80GB", "a100_80" and "nvidia-a100-80" are a100-80, and "3090" is rtx-3090.

    Args:
        name: Name of the card.

    Raises:
        UserError: There is no such card, or several.
    """
    known = cards()
    plain = re.sub(r"[\s_-]+", "-", re.sub(r"(?<=\d)\s*gi?b\b", "", name.strip().lower())).strip("-")
    plain = re.sub(r"^(nvidia|geforce|amd|instinct|tesla)-", "", plain)
    ways = [plain, f"rtx-{plain}", re.sub(r"^rtx(?=\d)", "rtx-", plain), plain.removesuffix("-sxm")]
    found = next((way for way in ways if way in known), None)
    if found is None:
        raise unknown("card", name, known, where="--gpu")
    return known[found]


def larger(than: Card) -> list[Card]:
    """Return the cards with more memory, the smallest first."""
    more = [c for c in cards().values() if c.memory_bytes > than.memory_bytes]
    return sorted(more, key=lambda c: (c.memory_bytes, c.name))
