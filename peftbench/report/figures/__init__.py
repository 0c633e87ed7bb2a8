"""Draws comparisons as PNG and SVG figures."""
