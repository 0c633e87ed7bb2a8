"""How long does it take to put another adapter in place, and to run rows of several adapters in one pass?

    python benchmarks/adapter_switch.py BACKBONE --labels 2 --out switch.json a.safetensors b.safetensors ...

The median of `--repeats` switches, and of as many passes over a batch of one row for each adapter: in one pass by row,
and as one pass for each adapter with a switch before it. The device is waited for before each reading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from peftbench.backbones import devices
from peftbench.backbones.devices import synchronise
from peftbench.backbones.load import load
from peftbench.method.serving import AdapterSet
from peftbench.records.environment import facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("adapters", nargs="+", type=Path)
    parser.add_argument("--labels", type=int, help="outputs of the head; without it the model is causal")
    parser.add_argument("--length", type=int, default=64, help="tokens in each row")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    kind = "generation" if args.labels is None else "regression" if args.labels == 1 else "classification"
    backbone = load(args.backbone, kind, args.labels or 1, device=devices.pick(args.device))
    adapters = AdapterSet(backbone, {str(path): path for path in args.adapters})
    names = adapters.names
    tokens = torch.randint(5, backbone.net.config.vocab_size, (len(names), args.length), device=backbone.device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    @torch.no_grad()
    def one_by_one() -> None:
        for i, name in enumerate(names):
            adapters.switch(name)
            backbone.net(**{key: t[i : i + 1] for key, t in inputs.items()})

    switches = [adapters.switch(names[i % len(names)]) for i in range(args.repeats + 2)][2:]  # the first two warm up
    told = {
        "backbone": args.backbone,
        "adapters": [Path(name).name for name in names],
        "shape": list(tokens.shape),
        "repeats": args.repeats,
        "seconds": {
            "switch": statistics.median(switches),
            "batch_by_row": median(lambda: adapters.batch(names, inputs), args.repeats, backbone.device),
            "one_by_one": median(one_by_one, args.repeats, backbone.device),
        },
        "environment": facts(str(backbone.device), torch.get_num_threads()),
    }
    args.out.write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told["seconds"]))


def median(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    seconds = []
    for _ in range(repeats + 2):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
