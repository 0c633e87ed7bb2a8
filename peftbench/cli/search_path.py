"""Take the working directory out of Python's search path. `peftbench/__init__.py` imports this before all else.

`python -m peftbench` puts the working directory first. A `yaml.py` or `torch.py` that lies there, perhaps in a folder
that somebody sent, would run in place of the library. The command `peftbench` has no such entry, and
worker processes start with `-P`. Nothing here may import what the working directory could replace.
"""

import os
import sys


def drop_working_directory(path: list[str], program: str) -> None:
    """Remove the entry that `python -m` put first.

    Args:
        path: the search path, which changes.
        program: the first of the arguments; Python sets it to "-m" while it looks for the module to run.
    """
    if program == "-m" and not sys.flags.safe_path and path and os.path.isabs(path[0]) and _is_here(path[0]):
        del path[0]


def _is_here(folder: str) -> bool:
    try:
        return folder == os.getcwd()
    except OSError:  # the working directory is gone, and Python has put nothing first
        return False


drop_working_directory(sys.path, sys.argv[0] if getattr(sys, "argv", None) else "")
