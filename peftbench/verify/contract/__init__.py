"""The contract every method keeps, as plain functions: a promise takes a `Case` and raises AssertionError if broken.

    for verdict in check(Case(find("lora"), {"rank": 2}, "tiny-decoder")):
        print(verdict)

No promise knows a method. They run on two tiny networks, with weights drawn large enough for a mistake to show, and
need neither pytest nor a download.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from peftbench.verify.contract import behaviour, editing, sequence, storage, training
from peftbench.verify.contract.case import Case
from peftbench.verify.contract.variants import variants

__all__ = ["PROMISES", "Case", "Promise", "Verdict", "check", "excuse", "promises", "variants"]

Promise = Callable[[Case], None]

PROMISES: tuple[Promise, ...] = (
    behaviour.describes_itself,
    behaviour.starts_as_it_claims,
    behaviour.evaluation_is_deterministic,
    training.only_declared_tensors_move,
    training.every_trained_tensor_learns,
    training.two_runs_are_identical,
    training.checkpointing_keeps_the_gradients,
    training.bfloat16_stays_close,
    editing.undo_is_exact,
    editing.merging_computes_the_same,
    editing.finishing_changes_nothing,
    storage.count_equals_the_formula,
    storage.state_is_what_training_changes,
    storage.saving_and_loading_is_exact,
    storage.swapping_adapters_is_exact,
    storage.foreign_adapters_are_refused,
    sequence.padding_changes_nothing,
    sequence.the_future_changes_nothing,
    sequence.cached_generation_is_the_same,
)
CAUSAL_ONLY = frozenset({sequence.the_future_changes_nothing, sequence.cached_generation_is_the_same})


@dataclass(frozen=True)
class Verdict:
    """What came of one promise: `why` is empty where it was kept; `at` is the method's own line that raised, if any."""

    promise: str
    why: str = ""
    at: str = ""

    @property
    def kept(self) -> bool:
        return not self.why

    def __str__(self) -> str:
        said = self.promise.replace("_", " ")
        return f"kept    {said}" if self.kept else f"BROKEN  {said}: {self.why}"


def promises(case: Case) -> list[Promise]:
    """The promises that have a meaning on the case's network."""
    return [p for p in PROMISES if case.kind == "generation" or p not in CAUSAL_ONLY]


def excuse(case: Case) -> str | None:
    """The method's own reason why a case is not held against it; None where every promise is.

    A UserError at the defaults lets a method off that network (it has to take another one); one at a hyperparameter
    lets it off that setting, an optional backend, say. The size knob is not optional.
    """
    refused = Case(case.method, {}, case.backbone).refusal()
    optional = bool(case.hyper) and case.method.size_knob not in case.hyper
    return case.refusal() if refused is None and optional else refused


def check(case: Case, only: Iterable[Promise] | None = None) -> list[Verdict]:
    """Try every promise on `case`; whatever a method raises on the way breaks that promise and is told."""
    verdicts = []
    for promise in promises(case) if only is None else only:
        with torch.random.fork_rng(devices=[]):
            try:
                promise(case)
            except AssertionError as error:
                why = str(error) or "an assertion without a message failed"
                verdicts.append(Verdict(promise.__name__, why, _place(error, case)))
            except Exception as error:  # the method under test is foreign code: it may raise anything
                why = f"it raised {type(error).__name__}: {error}"
                verdicts.append(Verdict(promise.__name__, why, _place(error, case)))
            else:
                verdicts.append(Verdict(promise.__name__))
    return verdicts


def _place(error: Exception, case: Case) -> str:
    """`file:line in function` of the last frame in the file that defines the method; empty if none is there."""
    own = getattr(sys.modules.get(case.method.__module__), "__file__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == own]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
