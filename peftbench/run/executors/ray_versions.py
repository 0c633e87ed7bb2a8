"""What must be the same on every machine of a grid, and what a user does where it is not. Imports no ray."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from peftbench import cache
from peftbench.records import environment

PACKAGES = ("torch", "transformers")
SOURCES = "peftbench"


def here() -> dict[str, str | None]:
    """The versions of Python and of packages on this machine, and peftbench's sources as a hash.

    The build of a package is left out ("+cpu", "+cu126"): a driver without a GPU may serve nodes that have one.
    """
    installed = cache.versions(*PACKAGES)
    return {
        "Python": platform.python_version(),
        **{name: version and version.partition("+")[0] for name, version in installed.items()},
        SOURCES: environment.source_hash(environment.source_roots()),
    }


def difference(node: str, there: Mapping[str, str | None], here: Mapping[str, str | None]) -> str | None:
    """In a sentence, how a node's versions differ from those of this machine, and the fix; None if they do not."""
    different = [name for name, version in here.items() if there.get(name) != version]
    if not different:
        return None
    facts = ", ".join(f"{name} is {there.get(name) or 'missing'} there and {here[name]} here" for name in different)
    pins = " ".join(f"{name}=={here[name]}" for name in different if name in PACKAGES)
    fixes = [
        *([f"Python {here['Python']}"] if "Python" in different else []),
        *([f"`pip install {pins}`"] if pins else []),
        *(["the same release or checkout of peftbench"] if SOURCES in different else []),
    ]
    return f"node {node} is not like this machine: {facts}. Install there: {', '.join(fixes)}"


def is_missing(message: str) -> bool:
    """Whether an error of ray says that a node could not import peftbench."""
    return "No module named 'peftbench" in message


def missing(node: str) -> str:
    """In a sentence, that a node lacks peftbench or has an older one, and the fix."""
    return (
        f"node {node} cannot import the peftbench that this machine has. Install there the same release or checkout of "
        "it, with the extra ray, for the Python that ray runs with"
    )
