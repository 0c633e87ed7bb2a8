"""Whose training step is estimated: programs and their parts, each simulated."""
