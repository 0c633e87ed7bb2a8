"""How many floating-point operations a second this machine's matrix products reach, for predicted times only."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

from peftbench.manifest import Manifest, Store, versions
from peftbench.spec import digest

if TYPE_CHECKING:
    import torch

WIDTH = 768  # of the matrices: about what a small transformer multiplies
BURSTS = 8
BURST_SECONDS = 0.05


def rate(manifest: Manifest, device: str, dtype: str) -> float:
    """Floating-point operations a second on `device` ("auto" too) with one process; measured once, then remembered.

    Imports torch when the cache does not know.
    """
    machine = {"node": platform.node(), "device": device, "dtype": dtype, "packages": versions("torch")}
    store = Store(manifest.folder, "rate", digest(machine))
    found = store.get("flops_per_second", lambda: _measure(device, dtype))
    store.save()
    return float(found)


def _measure(device: str, dtype: str) -> float:
    import torch

    from peftbench.devices import pick

    where, kind = pick(device), getattr(torch, dtype)
    a = torch.ones(WIDTH, WIDTH, device=where, dtype=kind)
    for _ in range(3):  # warm-up
        a @ a
    return max(_burst(a) for _ in range(BURSTS))  # the best one: the others were disturbed


def _burst(a: torch.Tensor) -> float:
    """Operations a second over a short while."""
    _wait(a.device)
    started, products = time.perf_counter(), 0
    while time.perf_counter() - started < BURST_SECONDS:
        a @ a
        _wait(a.device)
        products += 1
    return products * 2 * WIDTH**3 / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
