"""Moved to peftbench.method.serving; this path goes with release 0.3."""

from peftbench.method.serving import *  # noqa: F403
