"""A few float64 training steps of a method on a tiny network, by one process or by several, and what comes of them.

`on(parallel, cases)` returns what the first rank has. Run as a script, it forks the ranks of jobs one after another.
`plant` breaks the engine on purpose, as public programs were broken.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones.sharded import local, whole
from peftbench.errors import UserError
from peftbench.method.layers.nf4 import NF4Linear
from peftbench.method.registry import discover, find
from peftbench.records.spec import TrainSpec
from peftbench.run import train as train_module
from peftbench.run.checkpoint import RunCheckpoint
from peftbench.run.parallel import shards
from peftbench.run.parallel.ranks import ONE, Group, Ranks
from peftbench.run.train import Fitted, Trainer, fit
from peftbench.verify.contract.case import AdaptedModel, Case, batch

STEPS = 5
ROWS = 12  # divisible by two, three and four ranks
ENV = {"code": {"source": "s"}, "packages": {}}


@dataclass
class Result:
    """What a training came to.

    Attributes:
        losses: of each step.
        gradients: of the first step, whole and clipped, by the parameter's name.
        state: the tensors of the edit and the head after the last step.
        logits: in evaluation mode, after it.
        bytes: of weights and buffers that this rank holds.
        codes: the 4-bit tensors, whole, by name.
        resumed: the steps at which it went on from a checkpoint.
        refused: why the method refuses to be shared so, or the network the method; the rest is empty then.
    """

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    bytes: int = 0
    codes: dict[str, Tensor] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)
    refused: str = ""


def on(
    parallel: dict[str, int],
    cases: list[tuple[str, dict[str, Any], str]],
    plant: str = "",
    checkpoint: Path | None = None,
    stop: int = STEPS,
    **options: Any,
) -> list[Result]:
    """Train each (method, hyperparameters, network) on as many ranks as `parallel` says.

    Args:
        parallel: {}, {"data": N} or {"shards": N}.
        cases: what to train.
        plant: the name of a bug in `PLANTS`.
        checkpoint: where training goes on from, if it is there, and what is written after `stop` steps.
        stop: steps after which the ranks stop.
        options: of the networks: `gradient_checkpointing`; and `accumulation`.

    Raises:
        RuntimeError: a rank failed; the text is what the ranks printed.
    """
    job = [parallel, cases, plant, str(checkpoint) if checkpoint else None, stop, options]
    if not parallel:
        return _results(job, ONE)
    size = max(parallel.values())
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        Path(folder, "job.json").write_text(json.dumps(job))
        if any(_ranks(folder, size, port)):
            raise RuntimeError("\n".join(Path(folder, f"said {n}").read_text()[-3000:] for n in range(size)))
        return [Result(**r) for r in torch.load(Path(folder, "results.pt"))]


def _ranks(*asked: Any) -> list[int]:
    """Carry out a job on as many ranks, and return how each ended."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(asked) + "\n")
    server.stdin.flush()
    return list(json.loads(server.stdout.readline()))


@cache
def _server() -> subprocess.Popen[str]:
    """A process that has loaded torch and the methods, which takes seconds, and forks the ranks of all jobs."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, __file__], env=env, stdin=pipe, stdout=pipe, text=True)

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()

    atexit.register(end)
    return server


def start(case: Case, parallel: dict[str, int], ranks: Ranks, options: dict[str, Any]) -> tuple[AdaptedModel, Trainer]:
    """The method on a network in float64 without dropout, whose draws depend on the rank, and its trainer."""
    saves = {k: v for k, v in options.items() if k == "gradient_checkpointing"}
    model = AdaptedModel(case, **saves)
    for module in model.net.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, nn.Dropout))):
                setattr(module, name, 0.0)
    model.net.double()
    spec = TrainSpec(
        1e-2, STEPS, ROWS, 12, accumulation=options.get("accumulation", 1), warmup=0.0, decay="constant", clip=0.5,
        weight_decay=0.01, data_parallel=parallel.get("data", 1), shards=parallel.get("shards", 1),
    )  # fmt: skip
    model.trainer = Trainer.start(model.edit, model.method, spec, "float32", ranks)
    return model, model.trainer


def train(case: Case, job: list[Any], ranks: Ranks) -> Result:
    parallel, _, _, file, stop, options = job
    torch.manual_seed(0)
    try:
        model, trainer = start(case, parallel, ranks, options)
    except UserError as error:
        return Result(refused=str(error))
    quantised = [(path, m) for path, m in model.net.named_modules() if isinstance(m, NF4Linear)]
    codes = {
        f"{path}.{n}": whole(t).clone() for path, m in quantised for n in m.STORED if (t := getattr(m, n)) is not None
    }
    names, gradients = {id(p): n for n, p in model.net.named_parameters()}, dict[str, Tensor]()

    def keep(*_: Any) -> None:
        if not gradients:
            params = [p for g in trainer.optimizer.param_groups for p in g["params"]]
            gradients.update({names[id(p)]: whole(p.grad).clone() for p in params if p.grad is not None})

    hook = trainer.optimizer.register_step_pre_hook(keep)
    fitted = _fitted(case, trainer, stop, file)
    hook.remove()
    state = {n: t.clone() for n, t in model.edit.state().items()}
    state |= {f"head.{i}": t for i, t in enumerate(model.head())}
    held = {id(p): local(p).nbytes for p in (*model.net.parameters(), *model.net.buffers())}
    resumed = [at["step"] for at in fitted.resumed]
    return Result(fitted.losses, gradients, state, model.logits(), sum(held.values()), codes, resumed)


def _fitted(case: Case, trainer: Trainer, stop: int, file: str | None) -> Fitted:
    """Train by the true loop; up to `stop` steps, after which the checkpoint is there."""
    saved = RunCheckpoint(Path(file), stop, "s", ENV) if file else None
    made = Fitted()

    def halted() -> bool:
        return made.stopped_at >= stop

    def note(facts: dict[str, Any]) -> None:
        made.stopped_at = facts["step"]

    def take(step: int) -> dict[str, Tensor]:
        drawn = [batch(case, 3 * step + i) for i in range(ROWS // 4)]
        return {k: torch.cat([d[k] for d in drawn]) for k in drawn[0]}

    batches = [partial(take, step) for step in range(STEPS)]
    try:
        return fit(
            trainer, batches, lambda step: {"accuracy": 0.0}, lambda a, b: False,
            stop=halted, on_progress=note, checkpoint=saved,
        )  # fmt: skip
    except train_module.Abandoned:
        return made


def _results(job: list[Any], ranks: Ranks) -> list[Result]:
    results = []
    for i, (method, hyper, network) in enumerate(job[1]):
        own = [*job[:3], job[3] and f"{job[3]} {i}", *job[4:]]  # a checkpoint of its own
        results.append(train(Case(find(method), hyper, network), own, ranks))
    return results


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    parallel, _, plant, *_ = job
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = Group(parallel.get("shards", 1), torch.device("cpu"))
    if plant:
        PLANTS[plant](ranks)
    results = _results(job, ranks)
    if ranks.is_first:
        torch.save([vars(r) for r in results], folder / "results.pt")
    dist.barrier()


def _base_stays_whole(_: Ranks) -> None:
    """4-bit tensors stay buffers, which nothing divides (axolotl#2992)."""
    shards._store_weights_as_parameters = lambda net: None


def _optimizer_first(_: Ranks) -> None:
    """The optimiser is made before the network is sharded."""
    shard, check, made = shards.shard, Group.check_optimizer, []

    def sharded(edit: Any, ranks: Ranks) -> None:
        made.append(torch.optim.AdamW([p for p in edit.net.parameters() if p.requires_grad]))
        shard(edit, ranks)

    shards.shard = sharded
    Group.check_optimizer = lambda self, net, _, method: check(self, net, made[-1], method)  # type: ignore[method-assign]


def _gradients_stay_apart(_: Ranks) -> None:
    """Nobody sums the gradients of what is whole on each rank."""
    Group.sum_gradients = lambda self, parameters: None  # type: ignore[method-assign]


def _values_by_rank(ranks: Ranks) -> None:
    """Each rank draws first values of its own."""
    torch.manual_seed = lambda seed: torch.default_generator.manual_seed(seed + ranks.rank)  # type: ignore[assignment]


def _loss_of_nothing(_: Ranks) -> None:
    """The loss is zero whatever the network says (accelerate#3983)."""
    real = train_module.loss_sum
    train_module.loss_sum = lambda kind, logits, labels: 0 * real(kind, logits, labels)


PLANTS = {
    "base stays whole": _base_stays_whole,
    "optimizer first": _optimizer_first,
    "gradients stay apart": _gradients_stay_apart,
    "values by rank": _values_by_rank,
    "loss of nothing": _loss_of_nothing,
}
SENTENCES = {  # in what each bug's run fails with
    "base stays whole": "Sharding would save nothing",
    "optimizer first": "made before the network was sharded",
    "gradients stay apart": "must be equal on every rank",
    "values by rank": "must be equal on every rank",
    "loss of nothing": "The run would learn nothing",
}


def serve() -> None:
    """Fork the ranks of each job that is asked for, and tell how they ended."""
    wire = os.fdopen(os.dup(1), "w")
    discover()
    for line in sys.stdin:
        folder, size, port = json.loads(line)
        ranks = [_fork(Path(folder), size, port, rank) for rank in range(size)]
        print(json.dumps([os.waitpid(pid, 0)[1] for pid in ranks]), file=wire, flush=True)


def _fork(folder: Path, size: int, port: int, rank: int) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        signal.alarm(600)
        said = os.open(folder / f"said {rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(shared, RANK=str(rank))
        main(folder)
        code = 0
    except BaseException:
        print(f"rank {rank}:")
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
