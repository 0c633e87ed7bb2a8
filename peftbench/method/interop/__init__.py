"""Trained adapters for other programs, and theirs for this one."""
