"""Memory figures of the operating system and of the CUDA allocator, which complement the tracker's own count.

The high-water mark of the resident set covers the whole process, with interpreter and libraries. It is a check on the
tracker, and what a user sees in a process list. Only Linux can reset it. Elsewhere it is None, because an earlier peak
would not belong to this step.
"""

from __future__ import annotations

from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_resident() -> bool:
    """Reset the high-water mark to the current resident set; return whether that is possible."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def resident_peak_bytes() -> int | None:
    """Return the high-water mark of the resident set since the last reset, in bytes; None if it cannot be read."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kibibytes[0]) * 1024 if kibibytes else None


class DevicePeak:
    """Measures resident set and CUDA allocator from `start()` to `read()`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" and torch.cuda.is_available() else None
        self._resettable = False

    def start(self) -> None:
        """Reset both peaks."""
        self._resettable = reset_resident()
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)

    def read(self) -> dict[str, int | None]:
        """Return resident_bytes, allocated_bytes and reserved_bytes; None for a figure that is not available."""
        resident = resident_peak_bytes() if self._resettable else None
        if self._cuda is None:
            return {"resident_bytes": resident, "allocated_bytes": None, "reserved_bytes": None}
        torch.cuda.synchronize(self._cuda)
        return {
            "resident_bytes": resident,
            "allocated_bytes": torch.cuda.max_memory_allocated(self._cuda),
            "reserved_bytes": torch.cuda.max_memory_reserved(self._cuda),
        }
