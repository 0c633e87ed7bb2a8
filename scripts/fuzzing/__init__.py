"""Families of odd inputs for scripts/fuzz.py: each module that has a function `cases` is one."""
