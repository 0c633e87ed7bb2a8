"""The peak memory of every run of a grid: what to ask, and what earlier plans were told. Imports no torch.

Each configuration is simulated once for each task, on the largest batch that any of its seeds will see (calibrate.py
has read the texts). Where the texts could not be read it is the largest batch that there can be: "at most". The answers
depend on no machine and are kept by package versions and the code that trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from peftbench import cache
from peftbench.cache import Store
from peftbench.errors import UserError
from peftbench.estimate.calibrate import CODE, Costs, batch_key, task_key
from peftbench.method.catalogue import Catalogue
from peftbench.plan.grid import Planned
from peftbench.plan.resolve import TaskFacts
from peftbench.records.spec import RunSpec, as_dict, digest

UNVERIFIED = "simulated with the CPU's kernels; not verified on a GPU"
PARTLY = "at most: only some of the micro-batches are padded, or there is one step only"
UNREAD = "at most: the lengths of the task's texts are not known"


@dataclass(frozen=True)
class Peak:
    """Bytes of the step that a run's record tracks, and the (texts, tokens) of its batch; None: not predicted."""

    bytes: int | None
    batch: tuple[int, int] | None = None
    at_most: bool = False
    note: str | None = None  # what the figure leaves open, or why there is none


def known(planned: Sequence[Planned], costs: Costs, catalogue: Catalogue) -> dict[str, Peak]:
    """The peak of each run by spec id, as far as plans have asked."""
    answers = _store(catalogue).answers
    found = {}
    for spec_id, (key, asked) in _questions(planned, costs).items():
        if key in answers:
            a = answers[key]
            at_most = None if a["bytes"] is None else _at_most(asked["batch"])
            remarks = [a.get("refused"), at_most, UNVERIFIED if costs.device not in (None, "cpu") else None]
            note = "; ".join(r for r in remarks if r) or None
            found[spec_id] = Peak(a["bytes"], tuple(a["batch"]) if a["bytes"] else None, at_most is not None, note)
    return found


def missing(planned: Sequence[Planned], costs: Costs, catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """The questions that no plan has asked yet, by key."""
    answers = _store(catalogue).answers
    return {key: asked for key, asked in _questions(planned, costs).values() if key not in answers}


def remember(told: Mapping[str, Mapping[str, Any]], catalogue: Catalogue) -> None:
    store = _store(catalogue)
    for key, answer in told.items():
        store.put(key, answer)
    store.save()


def _questions(planned: Sequence[Planned], costs: Costs) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is asked about each run, by spec id, and its key: what decides the bytes, and neither rate nor seed."""
    largest: dict[str, Mapping[str, Any]] = {}
    for p in planned:
        key, now = task_key(p.spec), costs.batches.get(batch_key(p.spec)) or _at_worst(p.spec)
        if key not in largest or _tokens(now) > _tokens(largest[key]):
            largest[key] = now
    found = {}
    for p in planned:
        found[p.spec.id] = _question(p.like, p.task, largest[task_key(p.spec)])
    return found


def _question(s: RunSpec, task: TaskFacts, batch: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    t = s.train
    told = [as_dict(s.backbone), task.kind, task.labels, batch, t.accumulation, t.clip is None, t.weight_decay > 0]
    key = digest([*told, s.method.name, s.method.version, dict(s.method.hyper)])[:24]
    return key, {"spec": as_dict(s), "kind": task.kind, "labels": task.labels, "batch": batch}


def at_worst(spec: RunSpec, task: TaskFacts, catalogue: Catalogue) -> int:
    """The peak of a run's step on the largest batch that there can be, simulated here and now, and remembered.

    Raises UserError for a method whose steps cannot be simulated.
    """
    key, asked = _question(spec, task, _at_worst(spec))
    store = _store(catalogue)
    if key not in store.answers:
        from peftbench.estimate.run_step import peak

        store.put(key, peak(asked, catalogue.plugins))
        store.save()
    answer = store.answers[key]
    if answer["bytes"] is None:
        raise UserError(answer["refused"])
    return int(answer["bytes"])


def _at_worst(spec: RunSpec) -> dict[str, Any]:
    """The largest batch that the limits allow; padded, since a mask costs memory."""
    t = spec.train
    return {"rows": t.batch_size, "length": t.max_length, "padded": True, "exact": False}


def _at_most(batch: Mapping[str, Any]) -> str | None:
    """Why the figure is an upper bound; None where it is exact."""
    return None if batch["exact"] else PARTLY if "tensors" in batch else UNREAD


def _tokens(batch: Mapping[str, Any]) -> tuple[int, bool]:
    """By what one batch is larger than another: its tokens, those of an answer apart too, and padding."""
    if "tensors" not in batch:
        return batch["rows"] * batch["length"], True
    shapes = batch["tensors"]
    names = ("input_ids", "decoder_input_ids")
    return sum(prod(shapes[n][1:]) for n in names if n in shapes), batch["padded"]


def _store(catalogue: Catalogue) -> Store:
    kept = {
        "packages": cache.versions("torch", "transformers", "bitsandbytes"),
        "code": cache.code_key(*CODE, files=catalogue.plugins),
    }
    return catalogue.stores.open("peaks", digest(kept))
