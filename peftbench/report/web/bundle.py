"""The scripts that draw the charts: Vega, Vega-Lite and Vega-Embed in one text, from the package vl-convert."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from peftbench import cache as cached

# In a process of its own: its JavaScript engine ends the process where address space is limited (`ulimit -v`).
PROGRAM = """\
import sys, vl_convert
text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed; window.vega = vega;")
text = text.replace("</script", "<\\\\/script").replace("<!--", "<\\\\!--")
open(sys.argv[1], "w", encoding="utf-8").write(text)
"""


class NotBundledError(Exception):
    """vl-convert could not bundle the scripts on this machine."""


@cache
def scripts() -> str:
    """The scripts; empty where they cannot be bundled, and the page then says that it has no charts.

    They take seconds to bundle, so that the user's cache keeps them for each version of the package.
    """
    path = cached.root() / "page" / f"vega-embed-{version('vl-convert-python')}.js"
    try:
        return cached.file(path, _bundle).read_text(encoding="utf-8")
    except NotBundledError:
        return ""


def _bundle(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0 or not path.is_file():
        raise NotBundledError(done.stderr.decode(errors="replace")[-500:])
