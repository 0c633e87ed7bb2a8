"""Module paths of release 0.1 that plugins used: `peftbench.__path__` ends here. This folder goes with release 0.3."""
