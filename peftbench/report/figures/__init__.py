"""Comparisons as figures."""
