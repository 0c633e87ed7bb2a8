"""Whether a run that is repeated on another device draws other random numbers, so that no tolerance applies.

First values, the order of batches and a new head are drawn on the CPU, the same for every device. Dropout is drawn
where the network computes: its masks differ between kinds of devices, and between models of GPUs. Two such runs differ
as two seeds do, and no bound tells this from a fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbench.records.record import TrainingRecord
from peftbench.records.spec import BackboneSpec


def draws_differ(r: TrainingRecord, device: str | None) -> str | None:
    """Return why a record cannot be compared with its repeat on a device; None if it can.

    Args:
        r: the record.
        device: the device of the repeat; None for the record's own kind.

    Raises:
        UserError: the device is not available here.
    """
    recorded = r.env.device.partition(":")[0]
    if recorded == "cpu" and device in (None, "cpu"):
        return None
    from peftbench.backbones import devices  # imports torch, which takes seconds

    here = devices.pick(device or recorded)
    name = devices.hardware(here)
    if here.type == recorded and (r.env.gpu is None or r.env.gpu.name == name):
        return None
    sources = [*_of_the_network(r.spec.backbone), *_of_the_method(r.raw().get("hyper") or r.spec.method.hyper)]
    if not sources:
        return None
    return (
        f"dropout draws differ between devices ({r.env.gpu.name if r.env.gpu else recorded} there, {name} here): "
        f"{', '.join(sources)}"
    )


def _of_the_method(hyper: Mapping[str, Any]) -> list[str]:
    """Return the method's probabilities of dropout that are not 0, as text."""
    return [f"{k} {v}" for k, v in hyper.items() if "dropout" in k and isinstance(v, (int, float)) and v > 0]


def _of_the_network(spec: BackboneSpec) -> list[str]:
    """Return the network's probabilities of dropout that are not 0, as text."""
    from peftbench.backbones.configuration import dropouts_of

    return [f"{key} {rate}" for key, rate in dropouts_of(spec).items() if rate > 0]
