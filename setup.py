"""Finds the packages: pyproject.toml can either find or list them, and two lie outside `peftbench/`."""

from setuptools import find_packages, setup

OUTSIDE = (
    "peftbench.methods",
    "peftbench.experiments",
    "peftbench.experiments.paper",
)

setup(packages=[*find_packages(include=["peftbench*"]), *OUTSIDE])
