"""Builds tables, figures and pages from records; reads nothing else."""
