"""Draws the figures of many tables at once: a share here, the others each in a Python process of its own.

Not a ProcessPoolExecutor: its processes begin by importing the user's main script again, which need not be meant for
that. The bytes do not depend on where they were drawn.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from . import plots
from .statistics import Comparison
from .style import Look

FEW = 4  # tables that are drawn sooner than another process has imported what draws

Page = tuple[Comparison, Mapping[str, Look]]
Files = list[tuple[str, bytes]]


def figures(pages: Sequence[Page], processes: int | None = None) -> list[Files]:
    """`plots.figures` of each page, in order; by as many processes as there are cores, and one for a few pages.

    Raises RuntimeError with what a process said before it failed.
    """
    count = min(processes or (_cores() if len(pages) > FEW else 1), max(len(pages), 1))
    shares = [pages[i::count] for i in range(count)]
    drawn: list[Files] = [[] for _ in pages]
    with ThreadPoolExecutor(count) as waiting:
        elsewhere = [waiting.submit(_elsewhere, share) for share in shares[1:]]
        drawn[::count] = _here(shares[0])
        for i, other in enumerate(elsewhere, 1):
            drawn[i::count] = other.result()
    return drawn


def _here(share: Sequence[Page]) -> list[Files]:
    return [list(plots.figures(c, looks)) for c, looks in share]


def _elsewhere(share: Sequence[Page]) -> list[Files]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    command = [sys.executable, "-P", "-m", __name__]
    done = subprocess.run(command, input=pickle.dumps(share), capture_output=True, env=env, check=False)
    said = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        raise RuntimeError(f"a process that draws figures ended with {done.returncode}:\n{said.strip()}")
    sys.stderr.write(said)  # warnings
    drawn: list[Files] = pickle.loads(done.stdout)  # noqa: S301 - of our own process
    return drawn


def _cores() -> int:
    affine = getattr(os, "sched_getaffinity", None)
    return len(affine(0)) if affine else os.cpu_count() or 1


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(_here(pickle.load(sys.stdin.buffer))))  # noqa: S301 - of our own process
