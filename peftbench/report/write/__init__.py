"""Writes the files of a report atomically, tests whether they are up to date, and compares them byte for byte."""
