"""The contract of a method. A promise is a function that takes a `Case` and raises AssertionError if it is broken.

    for verdict in check(Case(find("lora"), {"rank": 2}, "tiny-decoder")):
        print(verdict)

No promise depends on a particular method. The promises run on tiny networks, whose weights are large enough to reveal
a mistake. They need neither pytest nor a download.
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

__all__ = ["PROMISES", "Case", "Promise", "PromiseVerdict", "check", "promises", "skip_reason", "variants"]

Promise = Callable[[Case], None]

PROMISES: tuple[Promise, ...] = (
    behaviour.describes_itself,
    behaviour.starts_as_it_claims,
    behaviour.evaluation_is_deterministic,
    training.only_declared_tensors_move,
    training.every_trained_tensor_learns,
    training.two_runs_are_identical,
    training.resuming_changes_nothing,
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
class PromiseVerdict:
    """The result of trying one promise.

    Attributes:
        promise: the name of the promise's function.
        why: why it is broken; empty if it is kept.
        at: the last line of the method's own file in the traceback; empty if there is none.
    """

    promise: str
    why: str = ""
    at: str = ""

    @property
    def kept(self) -> bool:
        return not self.why

    def __str__(self) -> str:
        name = self.promise.replace("_", " ")
        return f"kept    {name}" if self.kept else f"BROKEN  {name}: {self.why}"


def promises(case: Case) -> list[Promise]:
    """Return the promises that apply to the case's network.

    Causality and generation need a decoder. Nearness in bfloat16 needs a network that chooses no experts.
    """
    left_out = set() if case.kind == "generation" else set(CAUSAL_ONLY)
    if case.network.chooses:
        left_out.add(training.bfloat16_stays_close)
    return [p for p in PROMISES if p not in left_out]


def skip_reason(case: Case) -> str | None:
    """Return why a case is skipped, in the method's own words; None if its promises must be tried.

    A method that raises UserError at its defaults skips that network, but it must accept another one. A method that
    raises it at one hyperparameter skips that setting, such as an optional backend. No setting of the size knob is
    skipped.

    Args:
        case: the method, its hyperparameters and the network.
    """
    refused = Case(case.method, {}, case.backbone).refusal()
    optional = bool(case.hyper) and case.method.size_knob not in case.hyper
    return case.refusal() if refused is None and optional else refused


def check(case: Case, only: Iterable[Promise] | None = None) -> list[PromiseVerdict]:
    """Try promises on a case. Any exception that the method raises breaks the promise.

    Args:
        case: the method, its hyperparameters and the network.
        only: the promises to try; by default all that apply.

    Returns:
        One verdict for each promise, in order.
    """
    verdicts = []
    for promise in promises(case) if only is None else only:
        with torch.random.fork_rng(devices=[]):
            try:
                promise(case)
            except AssertionError as error:
                why = str(error) or "an assertion without a message failed"
                verdicts.append(PromiseVerdict(promise.__name__, why, _place(error, case)))
            except Exception as error:  # the method under test is foreign code and may raise anything
                why = f"it raised {type(error).__name__}: {error}"
                verdicts.append(PromiseVerdict(promise.__name__, why, _place(error, case)))
            else:
                verdicts.append(PromiseVerdict(promise.__name__))
    return verdicts


def _place(error: Exception, case: Case) -> str:
    """Return `file:line in function` of the last frame in the method's file; empty if the traceback has none."""
    own = getattr(sys.modules.get(case.method.__module__), "__file__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == own]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
