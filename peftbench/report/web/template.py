"""The templates and our own styles and scripts, as texts; what is filled in is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = ("decide.js", "table.js", "draw.js", "page.js")  # in the order in which they run
ASSETS = tuple(HERE / name for name in ("page.html.j2", "index.html.j2", "page.css", "index.js", *SCRIPTS))


@cache
def of(name: str) -> Any:
    """A template of jinja2 by its file name."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string((HERE / name).read_text(encoding="utf-8"))


def style() -> Any:
    """The styles, which the templates do not escape."""
    return safe((HERE / "page.css").read_text(encoding="utf-8"))


def scripts() -> Any:
    """Our own scripts, which the templates do not escape."""
    return safe("\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS))


def script(name: str) -> Any:
    """One of our own scripts by its file name, which the templates do not escape."""
    return safe((HERE / name).read_text(encoding="utf-8"))


def safe(text: str) -> Any:
    """A text that the templates do not escape."""
    from markupsafe import Markup

    return Markup(text)
