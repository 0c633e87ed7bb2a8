"""Intervals, tests and ranks on arrays of scores; independent of record files."""
