"""Moved to peftbench.backbones.sites; this path goes with release 0.3."""

from peftbench.backbones.sites import *  # noqa: F403
