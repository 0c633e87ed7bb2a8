"""The CUDA devices that the driver shows to a new process: their numbers of bytes, as a JSON list on standard output.

The runner starts this file as a script (`python cuda_driver.py`), so that the runner itself neither initialises CUDA
nor imports torch. No device gets a context. Without a driver, or with one that fails, the list is empty.
"""

from __future__ import annotations

import ctypes
import json


def memory_of_devices() -> list[int]:
    """Return the total memory of each device in bytes, in the order of "cuda:0", "cuda:1", ..."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found: list[int] = []
    for number in range(count.value):
        device, size = ctypes.c_int(), ctypes.c_size_t()
        if driver.cuDeviceGet(ctypes.byref(device), number):
            return found
        if driver.cuDeviceTotalMem_v2(ctypes.byref(size), device):
            return found
        found.append(size.value)
    return found


if __name__ == "__main__":
    print(json.dumps(memory_of_devices()))
