"""Single changes that would make a step fit on a card. Each is simulated, none is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil
from typing import Any

from peftbench.errors import UserError
from peftbench.estimate.card import fits
from peftbench.estimate.card.cards import larger
from peftbench.estimate.card.fits import Estimator, Program, Question
from peftbench.estimate.program import programs
from peftbench.estimate.step_estimate import Setting, StepEstimate

QUANTISED = {"lora": "qlora", "dora": "qdora"}  # the method with the same update on a 4-bit base
SHARDS = (2, 4, 8)
MOST_PAIRS = 3  # fitting pairs among which the fastest is named


@dataclass(frozen=True)
class Change:
    """One change, or two together.

    Attributes:
        what: How to ask for it, e.g. "--checkpointing".
        needed_bytes: What the step then needs of the card.
        seconds: Of as many tokens as the unchanged step trains on; None if unknown.
        program: What then runs; of fewer texts in a step, what each of its passes runs.
        card: Name of the card.
        gpus: Number of cards.
        remark: What else it changes.
    """

    what: str
    needed_bytes: int
    seconds: float | None
    program: Program
    card: str
    gpus: int
    remark: str = ""

    @property
    def cuts_texts(self) -> bool:
        """Whether it trains on less of each text."""
        return self.what.startswith("--seq")


@dataclass(frozen=True)
class Option:
    """A change before it is simulated."""

    what: str
    apply: Callable[[Program], Program]
    remark: str = ""


def single(program: Program, question: Question, estimate_at: Estimator, unchanged: StepEstimate) -> list[Change]:
    """Return the single changes that make the step fit, the fastest first.

    Args:
        program: What does not fit.
        question: The card.
        estimate_at: Estimates a program; a `UserError` says that it cannot run.
        unchanged: The estimate of `program`.
    """
    tried = (_made(option, program, question, estimate_at) for option in _options(program, unchanged))
    fitting = [made for made in tried if made is not None]
    for scale in (_fewer_texts, _lower_rank, _shards):
        fitting += _smallest(list(scale(program, unchanged)), program, question, estimate_at)
    fitting += _shorter(program, question, estimate_at)
    fitting += _larger_card(program, question, unchanged)
    return sorted(fitting, key=_time)


def pair(program: Program, question: Question, estimate_at: Estimator, unchanged: StepEstimate) -> Change | None:
    """Return two changes that together make the step fit on these cards with these texts; None if no two do.

    Pairs are tried in the order of what each of the two saves alone. Of the first few that fit, it is the fastest.
    """
    options = [*_options(program, unchanged), *_lasts(program, unchanged)]
    saved: dict[str, int] = {}
    for option in options:
        try:
            saved[option.what] = unchanged.peak_bytes - estimate_at(option.apply(program)).peak_bytes
        except UserError:
            continue
    known = [o for o in options if saved.get(o.what, 0) > 0]
    both = sorted(combinations(known, 2), key=lambda two: -sum(saved[o.what] for o in two))
    found: list[Change] = []
    for one, other in both:
        together = _together(one, other)
        made = _made(together, program, question, estimate_at)
        found += [] if made is None else [made]
        if len(found) == MOST_PAIRS:
            break
    return min(found, key=_time, default=None)


def _together(one: Option, other: Option) -> Option:
    remark = "; ".join(filter(None, (one.remark, other.remark)))
    return Option(f"{one.what} {other.what}", lambda p: other.apply(one.apply(p)), remark)


def _options(program: Program, unchanged: StepEstimate) -> Iterator[Option]:
    """Yield the changes that have no size."""
    s = program.setting
    if not _now(s, "checkpointing"):
        yield _step("--checkpointing", checkpointing=True)
    if _now(s, "attention") not in ("flash", "efficient"):
        yield _step("--attention flash", attention="flash")
    if _now(s, "dtype") == "float32":
        yield _step("--dtype bf16", "lower precision", dtype="bfloat16")
    if _now(s, "optimizer") == "adamw":
        yield _step("--optimizer adamw8bit", "moments of 8 bits", optimizer="adamw8bit")
    if s.program is not None and s.program.loss != "fused":
        yield _step("--part loss=fused", "head and loss in one", loss="fused")
    if s.shards > 1 and not s.offload:
        yield _set("--offload", "the shards lie on the host", offload=True)
    if (other := QUANTISED.get(program.method)) is not None:
        yield Option(f"{other} in place of {program.method}", lambda p: replace(p, method=other), "a 4-bit base")
    if len(str(unchanged.hyper.get("roles") or "q k v").split()) > 2:
        yield _hyper("roles", "'q v'", "q v")


def _smallest(options: list[Option], program: Program, question: Question, estimate_at: Estimator) -> list[Change]:
    """Return the first of some options, each further than the one before, that fits; none where the last does not."""
    if not options or (last := _made(options[-1], program, question, estimate_at)) is None:
        return []
    return [next((m for o in options[:-1] if (m := _made(o, program, question, estimate_at))), last)]


def _fewer_texts(program: Program, _: StepEstimate) -> Iterator[Option]:
    batch = program.setting.batch
    while batch > 1:
        batch //= 2
        passes = -(-program.setting.batch // batch)
        yield _set(f"--batch {batch}", f"{passes} passes a step, gradients added up", batch=batch)


def _lower_rank(program: Program, unchanged: StepEstimate) -> Iterator[Option]:
    rank = unchanged.hyper.get("rank")
    while isinstance(rank, int) and rank > 1:
        rank //= 2
        yield _hyper("rank", str(rank), rank)


def _shards(program: Program, _: StepEstimate) -> Iterator[Option]:
    for n in SHARDS:
        if n > program.setting.shards:
            yield _set(f"--shards {n}", f"{n} devices share the base", shards=n)


def _lasts(program: Program, unchanged: StepEstimate) -> Iterator[Option]:
    """Yield the furthest of the changes that have a size and need no further card."""
    for scale in (_fewer_texts, _lower_rank):
        yield from list(scale(program, unchanged))[-1:]


def _shorter(program: Program, question: Question, estimate_at: Estimator) -> list[Change]:
    try:
        most = fits.largest("seq", program, question, estimate_at).value
    except UserError:
        return []
    option = _set(f"--seq {most}", "the rest of each longer text is cut off", seq=most)
    made = _made(option, program, question, estimate_at) if most else None
    return [] if made is None else [made]


def _larger_card(program: Program, question: Question, unchanged: StepEstimate) -> list[Change]:
    """Return the smallest card that the unchanged step fits on: the step is the same, so it is not simulated again."""
    for card in larger(question.card):
        if fits.fits(unchanged, card, question.context):
            step = fits.seconds(unchanged, replace(question, card=card))
            needed = fits.needed_bytes(unchanged, question.context)
            took = None if step is None else step.seconds
            return [Change(f"--gpu {card.name}", needed, took, program, card.name, question.gpus, "another card")]
    return []


def _made(option: Option, program: Program, question: Question, estimate_at: Estimator) -> Change | None:
    """Simulate an option; None if it cannot run, or does not fit."""
    try:
        changed = option.apply(program)
        estimate = estimate_at(changed)
    except UserError:
        return None
    if not fits.fits(estimate, question.card, question.context):
        return None
    gpus = changed.setting.shards * ceil(question.gpus / changed.setting.shards)
    step = fits.seconds(estimate, replace(question, gpus=gpus))
    before, after = program.setting, changed.setting
    share = before.batch * before.seq * question.gpus / (after.batch * after.seq * gpus)
    took = None if step is None else step.seconds * share
    needed = fits.needed_bytes(estimate, question.context)
    what = option.what if gpus == question.gpus else f"{option.what} --gpus {gpus}"
    return Change(what, needed, took, changed, question.card.name, gpus, option.remark)


def _set(what: str, remark: str = "", **values: Any) -> Option:
    return Option(what, lambda p: replace(p, setting=replace(p.setting, **values)), remark)


def _now(s: Setting, name: str) -> Any:
    """Return what a step has for an option of `estimate`: another program has a part of it."""
    return getattr(s, name) if s.program is None else getattr(s.program, programs.part_of(name))


def _step(what: str, remark: str = "", **values: Any) -> Option:
    """Return an option that another program takes as a part of it."""

    def apply(p: Program) -> Program:
        s = p.setting
        if s.program is None:
            return replace(p, setting=replace(s, **values))
        parts = {programs.part_of(name): value for name, value in values.items()}
        return replace(p, setting=replace(s, program=replace(s.program, **parts)))

    return Option(what, apply, remark)


def _hyper(key: str, shown: str, value: Any) -> Option:
    def apply(p: Program) -> Program:
        hyper: Mapping[str, Any] = {**p.hyper, key: value}
        return replace(p, hyper=hyper)

    return Option(f"{key}={shown}", apply, "trains fewer parameters")


def _time(change: Change) -> float:
    """Return what a change is sorted by: the seconds of all cards together."""
    return float("inf") if change.seconds is None else change.seconds * change.gpus
