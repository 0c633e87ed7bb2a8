"""Moved to peftbench.method.edit; this path goes with release 0.3."""

from peftbench.method.edit import *  # noqa: F403
