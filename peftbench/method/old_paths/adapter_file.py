"""Moved to peftbench.method.adapter_file; this path goes with release 0.3."""

from peftbench.method.adapter_file import *  # noqa: F403
