"""Formats comparisons as columns, terminal text, CSV, Markdown, LaTeX and JSON rows."""
