"""The kernels that OpenBLAS picks by processor, forced in a child process.

Products of `float64` differ between them in the last bits. Data that are compared bit for bit must not depend on them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

NEEDS = {None: "", "Haswell": "avx2", "SkylakeX": "avx512f"}  # None: OpenBLAS picks
KERNELS = tuple(NEEDS)


def process_environment(kernel: str | None) -> dict[str, str]:
    """The variables of a process whose OpenBLAS takes this kernel; skips the test where the processor lacks it."""
    library = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]  # type: ignore[index, call-overload]
    if "openblas" not in library:
        pytest.skip(f"numpy's BLAS is {library}: it has no kernels to choose from")
    if NEEDS[kernel] not in _flags():
        pytest.skip(f"the kernel {kernel} needs {NEEDS[kernel]}, which this processor lacks")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    return kept | ({"OPENBLAS_CORETYPE": kernel} if kernel else {})


def _flags() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
