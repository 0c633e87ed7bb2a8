"""Moved to peftbench.method.layers.nf4; this path goes with release 0.3."""

from peftbench.method.layers.nf4 import *  # noqa: F403
