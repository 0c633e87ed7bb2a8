"""Verify committed records: audit all of them, repeat a sample of their runs, and compare the two."""
