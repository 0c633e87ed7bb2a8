"""Moved to peftbench.records.spec; this path goes with release 0.3."""

from peftbench.records.spec import *  # noqa: F403
