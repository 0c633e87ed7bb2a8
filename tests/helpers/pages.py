"""The page of a report taken apart: its elements, its block of numbers, and the address of everything it would load."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import factories

from peftbench.report import assemble

URL = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
VOID = {"meta", "link", "br", "input", "img", "hr"}


class Page(HTMLParser):
    """A page that was read.

    Attributes:
        tags: every start tag with its attributes.
        texts: the text of each element that is no script or style, in order.
        facts: the block of numbers.
        loads: what a browser would fetch without being asked to.
        unbalanced: end tags without their start, and starts without their end.
    """

    def __init__(self, content: bytes | str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.loads: list[str] = []
        self.unbalanced: list[str] = []
        self._open: list[str] = []
        self._raw: dict[str, list[str]] = {"script": [], "style": []}
        self._block = ""
        self._id: str | None = None
        self.feed(content.decode() if isinstance(content, bytes) else content)
        self.close()
        self.unbalanced += self._open
        self.facts: dict[str, Any] = json.loads(self._block) if self._block else {}

    @property
    def text(self) -> str:
        """All that a reader sees, as one line."""
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self._open.append(tag)
        self._id = given.get("id")
        fetched = {"src", "srcset", "poster", "data", "background", "action", "formaction"}
        self.loads += [v for k, v in given.items() if k in fetched and v]
        if tag == "link" and given.get("href") != "data:,":
            self.loads.append(str(given.get("href")))
        self.loads += [a or b for a, b in URL.findall(given.get("style") or "")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "style":
            self.loads += [a or b for a, b in URL.findall(data)]
        elif inside == "script":
            self._block = data if self._id == "facts" else self._block
        else:
            self.texts.append(data)


def of(folder: Path, bodies: Sequence[dict[str, Any]]) -> Page:
    """The page of records with these bodies."""
    factories.write_all(folder, bodies)
    return Page(assemble.page(folder))
