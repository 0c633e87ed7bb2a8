"""One rank of a run on several devices: joins the others, carries out its part of the run, and tells how it ended.

`launch.py` starts it, with torchrun's environment variables and two pipes. The first rank's result is the run's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from peftbench.records.files import plain
from peftbench.records.spec import RunSpec
from peftbench.run.executors.worker import Channel, reporter
from peftbench.run.failures import describe, is_of_surroundings
from peftbench.run.jobs import Stop

ALIVE_SECONDS = 0.2  # between two signs of life
WAIT = timedelta(hours=2)  # for another rank: evaluation and checkpoints differ, and a dead one is noticed elsewhere


def main() -> None:
    """Carry out this rank's part of a run, and end."""
    channel = Channel()
    job = channel.messages.get()
    try:
        body = _execute(channel, RunSpec.from_dict(job["spec"]), job["session"])
    except BaseException as error:
        channel.send("failed", **_failure(error))
    else:
        channel.send("finished", body=plain(body) if job["rank"] == 0 else {})
    channel.messages.get()  # until the launcher closes the pipe, so that no rank misses what another still sends


def _execute(channel: Channel, spec: RunSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from peftbench.backbones import devices
    from peftbench.run.parallel.ranks import Group
    from peftbench.run.session import Session

    device = devices.pick(_device(given["device"], int(os.environ["LOCAL_RANK"])))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    ranks = Group(spec.train.shards, device)
    session = Session(**{**given, "device": str(device)}, ranks=ranks)
    report = reporter(channel) if ranks.is_first else lambda facts: None
    return session.execute(spec, report, _stopper(channel))


def _stopper(channel: Channel) -> Stop:
    """Tells whether the run is to stop; called between two steps, it says that one has ended."""
    last = 0.0

    def stop() -> bool:
        nonlocal last
        if (now := time.monotonic()) - last >= ALIVE_SECONDS:
            last = now
            channel.send("alive")
        return channel.abandon.is_set()

    return stop


def _device(name: str, local_rank: int) -> str:
    """This rank's device: of several GPUs, the one of its number."""
    import torch

    return f"cuda:{local_rank}" if name in ("cuda", "auto") and torch.cuda.is_available() else name


def _failure(error: BaseException) -> dict[str, Any]:
    from peftbench.errors import UserError
    from peftbench.run.train import Abandoned, Diverged

    kinds = ((UserError, "user"), (Abandoned, "abandoned"), (Diverged, "diverged"))
    kind = next((name for of, name in kinds if isinstance(error, of)), "error")
    message = str(error) if kind in ("abandoned", "diverged") else describe(error)["message"]
    return {
        "kind": kind,
        "message": message,
        "traceback": describe(error)["traceback"],
        "surroundings": is_of_surroundings(error),
        "body": plain(getattr(error, "body", {})),
    }


if __name__ == "__main__":
    main()
    os._exit(0)  # process groups may wait for others when they are taken apart
