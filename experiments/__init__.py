"""Experiment files that come with peftbench; installed as `peftbench.experiments`."""
