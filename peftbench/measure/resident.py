"""What the operating system and the CUDA allocator say about memory, beside the tracker's own count.

The resident set's high-water mark is the process's, interpreter and libraries included: a check on the tracker, and
what a user sees in a process list. It can be reset only on Linux, where the system allows it; elsewhere it is None,
since a mark left by something earlier would not be this step's.
"""

from __future__ import annotations

from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_resident() -> bool:
    """Set the high-water mark back to what is resident now; False where that is not possible."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def resident_peak_bytes() -> int | None:
    """The high-water mark of the process's resident set since the last reset; None where it cannot be read."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kibibytes[0]) * 1024 if kibibytes else None


class DevicePeak:
    """Both figures over one stretch: `start()`, then `read()`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" and torch.cuda.is_available() else None
        self._resettable = False

    def start(self) -> None:
        self._resettable = reset_resident()
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)

    def read(self) -> dict[str, int | None]:
        """Bytes: resident_bytes, allocated_bytes, reserved_bytes; None for what was not measured."""
        resident = resident_peak_bytes() if self._resettable else None
        if self._cuda is None:
            return {"resident_bytes": resident, "allocated_bytes": None, "reserved_bytes": None}
        torch.cuda.synchronize(self._cuda)
        return {
            "resident_bytes": resident,
            "allocated_bytes": torch.cuda.max_memory_allocated(self._cuda),
            "reserved_bytes": torch.cuda.max_memory_reserved(self._cuda),
        }
