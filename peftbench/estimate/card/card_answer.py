"""The whole answer for one program on one card: does it fit, how fast is it, what does it cost, and what would fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from peftbench.errors import UserError
from peftbench.estimate.card import changes, fits, step_seconds
from peftbench.estimate.card.cards import Card
from peftbench.estimate.card.changes import Change
from peftbench.estimate.card.fits import Bill, Estimator, Largest, Program, Question
from peftbench.estimate.card.step_seconds import StepSeconds
from peftbench.estimate.step_estimate import StepEstimate


@dataclass(frozen=True)
class Answer:
    """What is known of a program on a card.

    Attributes:
        fits: Whether the step fits.
        card: The card.
        gpus: Number of cards.
        needed_bytes: What the step needs of a card.
        context_bytes: Of these, what the process holds outside tensors.
        step: Seconds of a step; None if its kernels are not known.
        bill: Of the whole training; None without the number of examples, or if the step does not fit.
        currency: Of the price.
        largest_batch: The largest batch that fits, with texts of this length.
        longest_text: The longest texts that fit, in this batch.
        changes: Single changes that would make it fit, the fastest first.
        pair: Two changes that would on these cards with these texts, if no single one does; None for none.
        estimate: The estimate of the step.
        known_error: What the predicted seconds are worth.
    """

    fits: bool
    card: Card
    gpus: int
    needed_bytes: int
    context_bytes: int
    step: StepSeconds | None
    bill: Bill | None
    currency: str
    largest_batch: Largest
    longest_text: Largest
    changes: tuple[Change, ...]
    pair: Change | None
    estimate: StepEstimate
    known_error: str


def answer(
    program: Program, question: Question, estimate_at: Estimator, first: Callable[[StepEstimate], None] | None = None
) -> Answer:
    """Answer a question.

    Args:
        program: What is to run.
        question: On which card, on how many examples, at what price.
        estimate_at: Estimates a program.
        first: Told the program's own estimate, as what else fits takes many more.

    Raises:
        UserError: The program cannot run whatever the card, or the cards cannot be divided into the shards.
    """
    question.check(program.setting)
    known = _remembered(estimate_at)
    estimate = known(program)
    if first is not None:
        first(estimate)
    is_fitting = fits.fits(estimate, question.card, question.context)
    step = fits.seconds(estimate, question)
    single = [] if is_fitting else changes.single(program, question, known, estimate)
    alike = any(c.gpus == question.gpus and c.card == question.card.name and not c.cuts_texts for c in single)
    return Answer(
        is_fitting,
        question.card,
        question.gpus,
        fits.needed_bytes(estimate, question.context),
        question.context,
        step,
        fits.bill(step.seconds, program.setting.batch, question) if step is not None and is_fitting else None,
        question.currency,
        _largest("batch", program, question, known),
        _largest("seq", program, question, known),
        tuple(single),
        None if is_fitting or alike else changes.pair(program, question, known, estimate),
        replace(estimate, traffic=None),
        step_seconds.known_error(question.card),
    )


def _largest(axis: str, program: Program, question: Question, estimate_at: Estimator) -> Largest:
    """Find the largest value of an axis; 0 where not even the value 1 can run."""
    try:
        return fits.largest(axis, program, question, estimate_at)
    except UserError:
        return Largest(0, False)


def _remembered(estimate_at: Estimator) -> Estimator:
    """Return the estimator, which simulates each program once, also one that cannot run."""
    known: dict[str, StepEstimate | UserError] = {}

    def at(program: Program) -> StepEstimate:
        key = repr((program.method, sorted(program.hyper.items()), program.setting))
        if key not in known:
            try:
                known[key] = estimate_at(program)
            except UserError as error:
                known[key] = error
        found = known[key]
        if isinstance(found, UserError):
            raise found
        return found

    return at
