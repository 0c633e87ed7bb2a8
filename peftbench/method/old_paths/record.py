"""Moved to peftbench.records.record; this path goes with release 0.3."""

from peftbench.records.record import *  # noqa: F403
