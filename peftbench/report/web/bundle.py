"""The scripts that draw the charts: Vega, Vega-Lite and Vega-Embed in one text, from the package vl-convert."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path

from peftbench import cache as cached


@cache
def scripts() -> str:
    """The scripts. They take seconds to bundle, so that the user's cache keeps them for each version of the package."""
    path = cached.root() / "page" / f"vega-embed-{version('vl-convert-python')}.js"
    return cached.file(path, _bundle).read_text(encoding="utf-8")


def _bundle(path: Path) -> None:
    import vl_convert

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed; window.vega = vega;")
    path.write_text(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"), encoding="utf-8")
