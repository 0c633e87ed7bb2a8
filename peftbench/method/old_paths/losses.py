"""Moved to peftbench.backbones.losses; this path goes with release 0.3."""

from peftbench.backbones.losses import *  # noqa: F403
