"""Moved to peftbench.method.layers.vectors; this path goes with release 0.3."""

from peftbench.method.layers.vectors import *  # noqa: F403
