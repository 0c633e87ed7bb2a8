"""Moved to peftbench.method.layers.lowrank; this path goes with release 0.3."""

from peftbench.method.layers.lowrank import *  # noqa: F403
