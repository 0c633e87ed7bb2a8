"""Predict the peak memory of every run of a grid, with cached simulations. Imports no torch.

Each configuration is simulated once per task, on the largest batch that any of its seeds will see (`calibrate` has read
the texts). If the texts are unknown, the largest possible batch gives an upper bound. The results do not depend on the
machine; they are cached by package versions and training code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from peftbench import cache
from peftbench.cache import Store
from peftbench.errors import UserError
from peftbench.estimate.run.calibrate import CODE, Costs, batch_key, task_key
from peftbench.method.catalogue import Catalogue
from peftbench.plan.grid import Planned
from peftbench.plan.resolve import TaskFacts
from peftbench.records.spec import RunSpec, as_dict, digest

UNVERIFIED = "simulated with the CPU's kernels; not verified on a GPU"
PARTLY = "at most: only some of the micro-batches are padded, or there is one step only"
UNREAD = "at most: the lengths of the task's texts are not known"


@dataclass(frozen=True)
class RunPeak:
    """Predicted peak memory of the step that a run's record tracks.

    Attributes:
        bytes: The peak; None if not predicted.
        batch: (texts, tokens) of the batch.
        at_most: Whether the peak is only an upper bound.
        note: Limits of the prediction, or the reason for none.
    """

    bytes: int | None
    batch: tuple[int, int] | None = None
    at_most: bool = False
    note: str | None = None


def known(planned: Sequence[Planned], costs: Costs, catalogue: Catalogue) -> dict[str, RunPeak]:
    """Return the peak of each run by spec id, as far as it was simulated."""
    answers = _store(catalogue).answers
    peaks = {}
    for spec_id, (key, query) in _queries(planned, costs).items():
        if key in answers:
            a = answers[key]
            at_most = None if a["bytes"] is None else _at_most(query["batch"])
            remarks = [a.get("refused"), at_most, UNVERIFIED if costs.device not in (None, "cpu") else None]
            note = "; ".join(r for r in remarks if r) or None
            peaks[spec_id] = RunPeak(a["bytes"], tuple(a["batch"]) if a["bytes"] else None, at_most is not None, note)
    return peaks


def missing(planned: Sequence[Planned], costs: Costs, catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """Return the queries that were not simulated yet, by key."""
    answers = _store(catalogue).answers
    return {key: query for key, query in _queries(planned, costs).values() if key not in answers}


def remember(answers: Mapping[str, Mapping[str, Any]], catalogue: Catalogue) -> None:
    """Cache the answers of `calibrate.simulate`."""
    store = _store(catalogue)
    for key, answer in answers.items():
        store.put(key, answer)
    store.save()


def _queries(planned: Sequence[Planned], costs: Costs) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the query of each run by spec id, with its key.

    The key covers what determines the bytes; learning rate and seed do not.
    """
    largest: dict[str, Mapping[str, Any]] = {}
    for p in planned:
        key, batch = task_key(p.spec), costs.batches.get(batch_key(p.spec)) or _at_worst(p.spec)
        if key not in largest or _tokens(batch) > _tokens(largest[key]):
            largest[key] = batch
    return {p.spec.id: _query(p.like, p.task, largest[task_key(p.spec)]) for p in planned}


def _query(s: RunSpec, task: TaskFacts, batch: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    t = s.train
    step = [as_dict(s.backbone), task.kind, task.labels, batch, t.accumulation, t.clip is None, t.weight_decay > 0]
    step += [[t.data_parallel, t.shards]] if t.ranks > 1 else []
    key = digest([*step, s.method.name, s.method.version, dict(s.method.hyper)])[:24]
    return key, {"spec": as_dict(s), "kind": task.kind, "labels": task.labels, "batch": batch}


def at_worst(spec: RunSpec, task: TaskFacts, catalogue: Catalogue) -> int:
    """Return the peak of a run's step on the largest possible batch, simulated now if it is not cached.

    Args:
        spec: The run.
        task: Facts of its task.
        catalogue: The methods, with the cache.

    Returns:
        Bytes.

    Raises:
        UserError: The method's steps cannot be simulated.
    """
    key, query = _query(spec, task, _at_worst(spec))
    store = _store(catalogue)
    if key not in store.answers:
        from peftbench.estimate.run.run_peak import peak

        store.put(key, peak(query, catalogue.plugins))
        store.save()
    answer = store.answers[key]
    if answer["bytes"] is None:
        raise UserError(answer["refused"])
    return int(answer["bytes"])


def _at_worst(spec: RunSpec) -> dict[str, Any]:
    """Return the largest batch that the limits allow. It has padding, because a mask costs memory."""
    t = spec.train
    return {"rows": t.batch_size, "length": t.max_length, "padded": True, "exact": False}


def _at_most(batch: Mapping[str, Any]) -> str | None:
    """Return why the peak is an upper bound; None if it is exact."""
    return None if batch["exact"] else PARTLY if "tensors" in batch else UNREAD


def _tokens(batch: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the size of a batch for comparison: its tokens, with those of separate answers, and its padding."""
    if "tensors" not in batch:
        return batch["rows"] * batch["length"], True
    shapes = batch["tensors"]
    names = ("input_ids", "decoder_input_ids")
    return sum(prod(shapes[n][1:]) for n in names if n in shapes), batch["padded"]


def _store(catalogue: Catalogue) -> Store:
    versions = {
        "packages": cache.versions("torch", "transformers", "bitsandbytes"),
        "code": cache.code_key(*CODE, files=catalogue.plugins),
    }
    return catalogue.stores.open("peaks", digest(versions))
