"""docs/findings.md says nothing that its sources do not: its measured numbers stand in files that it links to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "findings.md"
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
MEASURED = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+\.\d+")  # a decimal, or thousands; whole numbers count things
INTERVAL = re.compile(r"[+-]?[\d.,]+(?: %)? \[[+-]?[\d.,]+(?: %)?, [+-]?[\d.,]+(?: %)?\]")


def plain(text: str) -> str:
    """One minus sign, no emphasis."""
    return text.replace("\u2212", "-").replace("**", "").replace("\u00a0", " ")


def items() -> list[str]:
    """Paragraphs, and each entry of a list and row of a table by itself."""
    text = plain(PAGE.read_text(encoding="utf-8"))
    blocks = re.split(r"\n\n|\n(?=- )|\n(?=\|)", text)
    return [" ".join(b.split()) for b in blocks if b.strip()]


def sources(item: str) -> str:
    """The text of every file that the item links to."""
    places = [PAGE.parent / link.partition("#")[0] for _, link in LINK.findall(item) if "://" not in link]
    return "\n".join(plain(p.read_text(encoding="utf-8")) for p in places)


WITH_NUMBERS = [i for i in items() if MEASURED.search(LINK.sub("", i))]


@pytest.mark.parametrize("item", WITH_NUMBERS, ids=lambda i: re.sub(r"\W+", " ", i)[:50].strip())
def test_every_number_stands_in_a_file_that_its_sentence_links_to(item: str) -> None:
    said, found = LINK.sub("", item), sources(item)
    numbers = set(re.findall(r"(?<![\d.,])[\d.,]*\d", found))
    missing = [n for n in MEASURED.findall(said) if n not in numbers]
    missing += [i for i in INTERVAL.findall(said) if i.lstrip("+") not in found]
    assert missing == []


def test_the_page_has_numbers_to_check() -> None:
    assert len(WITH_NUMBERS) >= 10
    assert any(INTERVAL.search(i) for i in WITH_NUMBERS)
