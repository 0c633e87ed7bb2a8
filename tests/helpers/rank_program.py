"""A few float64 training steps of a method on a tiny network, by one process or by several, and what comes of them.

`on(parallel, cases)` returns the results of the first rank. Run as a script, it is one rank.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones.sharded import local, whole
from peftbench.errors import UserError
from peftbench.method.layers.nf4 import NF4Linear
from peftbench.method.registry import find
from peftbench.records.spec import TrainSpec
from peftbench.run import checkpoint
from peftbench.run.parallel.ranks import ONE, Group, Ranks
from peftbench.run.train import Trainer
from peftbench.verify.contract.case import LENGTHS, AdaptedModel, Case, batch

STEPS = 5
RATE = 1e-2


@dataclass
class Result:
    """What a training came to.

    Attributes:
        losses: of each step.
        gradients: of the first step, whole and clipped, by the parameter's name.
        state: the tensors of the edit and the head after the last step.
        logits: in evaluation mode, after it.
        bytes: of the base that this rank holds.
        codes: the 4-bit tensors, whole, by name.
        refused: why the method refuses to be shared so; the rest is empty then.
    """

    losses: list[float]
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]
    logits: Tensor | None
    bytes: int
    codes: dict[str, Tensor]
    refused: str = ""


def spec(parallel: dict[str, int]) -> TrainSpec:
    return TrainSpec(
        RATE, STEPS, len(LENGTHS), max(LENGTHS), warmup=0.0, decay="constant", clip=0.5, weight_decay=0.01,
        data_parallel=parallel.get("data", 1), shards=parallel.get("shards", 1),
    )  # fmt: skip


def start(case: Case, parallel: dict[str, int], ranks: Ranks) -> tuple[AdaptedModel, Trainer]:
    """The method on a network in float64 without dropout, which would draw by rank, and its trainer."""
    model = AdaptedModel(case)
    for module in model.net.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, nn.Dropout))):
                setattr(module, name, 0.0)
    model.net.double()
    model.trainer = Trainer.start(model.edit, model.method, spec(parallel), "float32", ranks)
    return model, model.trainer


def train(case: Case, parallel: dict[str, int], ranks: Ranks = ONE, first: int = 0, last: int = STEPS,
          saved: dict[str, Any] | None = None) -> tuple[Result, Trainer]:  # fmt: skip
    """Steps `first` to `last`; with `saved`, from that checkpoint on."""
    torch.manual_seed(0)
    try:
        model, trainer = start(case, parallel, ranks)
    except UserError as error:
        return Result([], {}, {}, None, 0, {}, str(error)), None  # type: ignore[return-value]
    codes = {
        f"{path}.{name}": whole(getattr(m, name)).clone()
        for path, m in model.net.named_modules() if isinstance(m, NF4Linear)
        for name in NF4Linear.STORED if getattr(m, name) is not None
    }  # fmt: skip
    if saved is not None:
        checkpoint.load_state(trainer, saved)
    names = {id(p): n for n, p in model.net.named_parameters()}
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        if not gradients:
            params = [p for g in trainer.optimizer.param_groups for p in g["params"]]
            gradients.update({names[id(p)]: whole(p.grad).clone() for p in params if p.grad is not None})

    hook = trainer.optimizer.register_step_pre_hook(keep)
    model.net.train()
    losses = [float(trainer.step(batch(case, step), (step + 1) / STEPS)) for step in range(first, last)]
    hook.remove()
    state = {n: t.clone() for n, t in model.edit.state().items()}
    state |= {f"head.{i}": t for i, t in enumerate(model.head())}
    held = {id(p): local(p).nbytes for p in (*model.net.parameters(), *model.net.buffers())}
    return Result(losses, gradients, state, model.logits(), sum(held.values()), codes), trainer


def on(parallel: dict[str, int], cases: list[tuple[str, dict[str, Any], str]], **env: str) -> list[Result]:
    """Train each (method, hyperparameters, network) on as many ranks as `parallel` says."""
    size = max(1, *parallel.values()) if parallel else 1
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        Path(folder, "job.json").write_text(json.dumps([parallel, cases]))
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, folder],
                env={**os.environ, **shared, "RANK": str(rank), "PYTHONPATH": path, **env},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for rank in range(size)
        ]  # fmt: skip
        said = [rank.communicate(timeout=600)[0] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            raise RuntimeError("\n".join(f"rank {i}:\n{text[-3000:]}" for i, text in enumerate(said)))
        return [Result(**r) for r in torch.load(Path(folder, "results.pt"))]


def main(folder: Path) -> None:
    parallel, cases = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(1)
    ranks = ONE
    if parallel:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        ranks = Group(parallel.get("shards", 1), torch.device("cpu"))
    results = [train(Case(find(m), hyper, network), parallel, ranks)[0] for m, hyper, network in cases]
    if ranks.is_first:
        torch.save([vars(r) for r in results], folder / "results.pt")
    if parallel:
        dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)
