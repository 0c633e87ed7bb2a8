"""Try each method of a plan on its network before anything is trained: attach it to fake tensors and take one step.

What the step of a run would refuse is refused by the plan. What fails without the method too, or needs numbers that
only weights have, is left to the run. Imports torch only for what the cache does not know.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from peftbench import cache
from peftbench.errors import UserError
from peftbench.estimate.run.calibrate import CODE, quiet
from peftbench.method.catalogue import Catalogue
from peftbench.plan.resolve import TaskFacts
from peftbench.records.spec import RunSpec, as_dict, digest

if TYPE_CHECKING:
    from peftbench.backbones.load import Backbone

ROWS, TOKENS = 2, 16  # of the trial's batch, fewer tokens if the network has fewer positions
SECONDS = 30.0  # that a trial may take; it usually takes one
LAYERS = 3  # of a deep network whose layers are alike
T = TypeVar("T")
_NO_NUMBERS = re.compile(r"fake|meta|data.?ptr|storage|numpy|subclass|generator|device", re.IGNORECASE)


def prompt_of(spec: RunSpec, task: TaskFacts, catalogue: Catalogue) -> int:
    """Check that the network of a run takes a training step with the run's method; the verdict is cached.

    Args:
        spec: The run.
        task: Facts of its task.
        catalogue: The methods, with the cache.

    Returns:
        Number of vectors that the method inserts in each text.

    Raises:
        UserError: The network does not take the method, or this machine cannot try it; the message has the reason. A
            method that does not come back is left to the run, which may have a time limit.
    """
    packages = cache.versions("torch", "transformers", "bitsandbytes")
    code = cache.code_key(*CODE, files=catalogue.plugins)
    store = catalogue.stores.open("trials", digest({"code": code, "packages": packages}))
    network: list[Any] = [as_dict(spec.backbone), task.kind]
    network += [[spec.train.data_parallel, spec.train.shards]] if spec.train.ranks > 1 else []
    key = digest([*network, spec.method.name, spec.method.version, dict(spec.method.hyper)])
    if key not in store.answers:
        with quiet():
            try:
                verdict = _within(SECONDS, lambda: _verdict(spec, task, catalogue.plugins))
            except TimeoutError:
                return 0
            if verdict["in_step"] and not store.get(digest(network), lambda: _plain_network_steps(spec, task)):
                verdict["refused"] = None
        store.put(key, verdict)
    verdict = store.answers[key]
    if verdict["refused"]:
        raise UserError(verdict["refused"])
    return int(verdict["prompt"])


def _verdict(spec: RunSpec, task: TaskFacts, plugins: Iterable[Path | str]) -> dict[str, Any]:
    """Return why the method cannot train this network, if so, and the number of vectors that it inserts in a text.

    What fails in the step is only the method's fault if the network without it takes one.
    """
    from peftbench.estimate.simulate import fake_tensors
    from peftbench.estimate.simulate.simulated_ranks import simulated_ranks
    from peftbench.method.edit import Edit
    from peftbench.method.registry import find, make
    from peftbench.run import failures
    from peftbench.run.one_run import checked_counts
    from peftbench.run.train import Trainer

    method = make(find(spec.method.name, plugins), spec.method.hyper)
    backbone = _network(spec, task)
    with simulated_ranks(spec.train) as ranks, fake_tensors.fake_mode(padded=True):
        edit, in_step = Edit(fake_tensors.replace_tensors(backbone, fake_tensors.fake_like)), False
        try:
            method.attach(edit)
            checked_counts(edit, method)
            in_step = True
            backbone.reset_head()
            trainer = Trainer.start(edit, method, spec.train, spec.backbone.dtype, ranks)
            backbone.net.train()
            trainer.step(_batch(backbone, ranks.size), 1 / max(spec.train.steps, 1))
            edit.check_used()
            refused = None
        except BaseException as error:  # each network fails in its own way
            if failures.is_of_surroundings(error):  # no verdict about the method, and nothing to keep
                message = failures.describe(error)["message"]
                raise UserError(f"{spec.method.label} cannot be tried on this machine now: {message}") from error
            if isinstance(error, UserError):
                refused = failures.message_of(error)
                return {"refused": refused, "in_step": in_step, "prompt": backbone.virtual_tokens}
            refused, in_step = _reason(spec, backbone, error), True
    return {"refused": refused, "in_step": in_step and refused is not None, "prompt": backbone.virtual_tokens}


def _plain_network_steps(spec: RunSpec, task: TaskFacts) -> bool:
    """Return whether the network, without any method, takes the same step with all its parameters."""
    from peftbench.backbones.losses import loss_sum
    from peftbench.estimate.simulate import fake_tensors

    backbone = _network(spec, task)
    try:
        with fake_tensors.fake_mode(padded=True):
            net = fake_tensors.replace_tensors(backbone, fake_tensors.fake_like).net.requires_grad_(True).train()
            batch = _batch(backbone)
            labels = batch.pop("labels")
            loss_sum(task.kind, net(**batch).logits, labels).backward()
    except Exception:  # a network of any author, which fails in its own way: no method is to blame
        return False
    return True


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Return what a function returns, or raise what it raises; raise TimeoutError if it does not come back."""
    answer: Future[T] = Future()

    def carry_out() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=carry_out, name="trial step", daemon=True).start()
    return answer.result(seconds)


def _network(spec: RunSpec, task: TaskFacts) -> Backbone:
    """Return the run's network on the meta device, with fewer layers if they are many and alike, and dropping none."""
    from peftbench.backbones import source, weight_files
    from peftbench.backbones.configuration import check_layers_stay, load_config
    from peftbench.backbones.load import load_on_meta
    from peftbench.estimate.simulate.extrapolation import DEEP, equal_layers

    b = spec.backbone
    origin = source.origin(b.model, b.pinned_revision)
    labels = 2 if task.kind == "classification" else 1  # a head of any size is as good
    alike = equal_layers(load_config(origin, labels, task.kind)) or 0
    by_index = re.search(r"\.\d+\b", str(b.roles))  # such a layer would be missing
    backbone = load_on_meta(
        origin,
        task.kind,
        labels,
        b.roles,
        dtype=b.dtype,
        dropout=b.dropout,
        dropout_version=b.dropout_version,
        gradient_checkpointing=b.gradient_checkpointing,
        layers=LAYERS if alike >= DEEP and not by_index else None,
    )
    check_layers_stay(origin, backbone.net.config)
    weight_files.check_whole(origin)
    if backbone.net.config.pad_token_id is None:  # a run uses the tokenizer's; here any id serves
        backbone.net.config.pad_token_id = 0
    return backbone


def _batch(backbone: Backbone, ranks: int = 1) -> dict[str, Any]:
    from peftbench.backbones import limits
    from peftbench.estimate.simulate.simulated_step import batch_of

    known = limits.of(backbone.net, backbone.kind)
    rooms = [room for room in (known.positions, known.decoder_positions) if room is not None]
    batch = batch_of(backbone, ROWS * ranks, min([TOKENS, *rooms]), padded=True)
    return {**batch, "labels": batch["labels"].float()} if backbone.kind == "regression" else batch


def _reason(spec: RunSpec, backbone: Backbone, error: BaseException) -> str | None:
    """Return why a step fails with the method; None if only the lack of numbers may be the reason."""
    from peftbench.estimate.simulate.fake_tensors import VALUES_NEEDED
    from peftbench.run import failures

    text = failures.message_of(error)
    said = (text.strip().splitlines() or [""])[0][:200]
    if isinstance(error, (*VALUES_NEEDED, NotImplementedError)) or _NO_NUMBERS.search(text):
        return None
    return (
        f"a training step of {spec.method.label} on this {backbone.net.config.model_type} network fails"
        f"{_where(error.__traceback__)}, where the network without it takes one: {type(error).__name__}: {said}. Name "
        "other roles in the method, or use another method or backbone"
    )


def _where(trace: TracebackType | None) -> str:
    """Return the innermost module of the network that a traceback passes, as ` in CLASS.FUNCTION`."""
    found = ""
    while trace is not None:
        owner, frame = trace.tb_frame.f_locals.get("self"), trace.tb_frame
        if frame.f_globals.get("__name__", "").startswith("transformers.models") and owner is not None:
            found = f" in {type(owner).__name__}.{frame.f_code.co_name}"
        trace = trace.tb_next
    return found
