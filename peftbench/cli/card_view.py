"""`peftbench estimate --gpu`: does it fit on a card, how long does it take, and what does it cost?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftbench.cli.options import print_json, say
from peftbench.errors import UserError

if TYPE_CHECKING:
    from peftbench.estimate.card.card_answer import Answer
    from peftbench.estimate.card.changes import Change
    from peftbench.estimate.card.fits import Program, Question
    from peftbench.estimate.step_estimate import StepEstimate

Gpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="CARD", help="Does it fit on this card, how long does it take? E.g. l40s."),
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", metavar="N", help="With --gpu: number of cards. Default: the shards.")
]
Context = Annotated[
    str | None, typer.Option("--context", metavar="SIZE", help="With --gpu: what a process holds outside tensors.")
]
Examples = Annotated[
    int | None, typer.Option("--examples", metavar="N", help="With --gpu: texts of the data set, for hours and money.")
]
Epochs = Annotated[float | None, typer.Option("--epochs", metavar="E", help="With --examples: passes over them.")]
Price = Annotated[
    float | None,
    typer.Option("--price", metavar="X", help="With --examples: USD (or --currency) for an hour of a card."),
]
PriceFile = Annotated[
    Path | None, typer.Option("--prices", metavar="FILE", help="With --examples: YAML with prices of cards.")
]
Currency = Annotated[str | None, typer.Option("--currency", metavar="NAME", help="Of --price. Default: USD.")]


@dataclass(frozen=True)
class Asked:
    """The options of `estimate` that belong to a card."""

    gpu: str | None
    gpus: int | None
    context: str | None
    examples: int | None
    epochs: float | None
    price: float | None
    prices: Path | None
    currency: str | None

    def check(self, elsewhere: bool) -> None:
        """Raise `UserError` if options do not go together.

        Args:
            elsewhere: Whether `--all`, `--fit` or `--by-role` is given.
        """
        if self.gpu is None:
            given = [name for name, value in vars(self).items() if value is not None]
            if given:
                raise UserError(f"--{given[0]} goes with --gpu CARD: it is about training on a card")
        elif elsewhere:
            raise UserError("--gpu goes with none of --all, --fit and --by-role; leave one of them out")
        if self.examples is None and (self.epochs, self.price, self.prices) != (None, None, None):
            raise UserError("--epochs, --price and --prices go with --examples N, the texts of the data set")
        if self.price is not None and self.prices is not None:
            raise UserError("give --price or --prices, not both")
        if self.currency is not None and self.price is None:
            raise UserError("--currency goes with --price; a file of --prices names its own")

    def question(self, shards: int, positions: int | None) -> Question:
        """Return what is asked of the card.

        Args:
            shards: Cards that share the base's weights.
            positions: Longest text that the network takes; None for any.
        """
        from peftbench.estimate.card import cards, fits, prices
        from peftbench.plan import memory_size

        card = cards.card(str(self.gpu))
        price, currency = self.price, self.currency or fits.CURRENCY
        if self.prices is not None:
            read = prices.read(self.prices)
            price, currency = read.price(card, self.prices), read.currency
        try:
            context = fits.CONTEXT if self.context is None else memory_size.parsed_size(self.context)
        except UserError as error:
            raise UserError(f"--context: {error}") from error
        epochs = 1.0 if self.epochs is None else self.epochs
        return fits.Question(
            card, shards if self.gpus is None else self.gpus, context, self.examples, epochs, price, currency, positions
        )


def show(program: Program, question: Question, estimate_at: Callable[[Program], StepEstimate], as_json: bool) -> None:
    """Print the answer; exit with 1 if the step does not fit."""
    from peftbench.estimate.card.card_answer import answer

    def first(estimate: StepEstimate) -> None:
        say(f"{_at_once(estimate, question)}; looking for what else fits ...", sys.stderr)

    found = answer(program, question, estimate_at, first)
    if as_json:
        print_json(asdict(found))
    else:
        say(as_text(found))
    if not found.fits:
        raise typer.Exit(1)


def step_in_words(program: Program, asked: Program) -> str:
    """Return what is simulated in a few words: its size, and what else differs from what was asked."""
    s = program.setting
    words = [] if program.method == asked.method else [program.method]
    words += [f"{key}={value}" for key, value in program.hyper.items() if asked.hyper.get(key) != value]
    words += _differing(asdict(s), asdict(asked.setting), ("batch", "seq", "program"))
    if s.program is not None and asked.setting.program is not None:
        words += _differing(asdict(s.program), asdict(asked.setting.program))
    return ", ".join([f"batch {s.batch:,}", f"{s.seq:,} tokens", *words])


def _differing(these: dict[str, object], those: dict[str, object], but: tuple[str, ...] = ()) -> list[str]:
    return [f"{key}={value}" for key, value in these.items() if key not in but and value != those[key]]


def as_text(a: Answer) -> str:
    """Format an answer: one line that says it, then the parts."""
    from peftbench.estimate import tables

    lines = [_headline(a), "", *_parts(a)]
    if not a.fits:
        lines += ["", *_changes(a)]
    return "\n".join([*lines, "", tables.as_text(a.estimate)])


def _at_once(estimate: StepEstimate, question: Question) -> str:
    """What the first estimate says: whether it fits, and how long a step takes."""
    from peftbench.estimate.card import fits
    from peftbench.estimate.tables import size

    is_fitting, step = fits.fits(estimate, question.card, question.context), fits.seconds(estimate, question)
    sizes = f"{size(fits.needed_bytes(estimate, question.context))} of {size(question.card.memory_bytes)}"
    time = f", {_duration(step.seconds)} a step" if is_fitting and step is not None else ""
    return f"{'fits' if is_fitting else 'does not fit'} on {question.card.name}: {sizes}{time}"


def _headline(a: Answer) -> str:
    from peftbench.estimate.tables import size

    cards = a.card.name if a.gpus == 1 else f"{a.gpus} {a.card.name}"
    sizes = f"{size(a.needed_bytes)} of {size(a.card.memory_bytes)}"
    said = [f"{'fits' if a.fits else 'does not fit'} on {cards}: {sizes}{'' if a.gpus == 1 else ' on each'}"]
    if a.largest_batch.value:
        said.append(f"largest batch {a.largest_batch.value:,}")
    if a.longest_text.value:
        said.append(f"longest text {a.longest_text.value:,} tokens")
    if a.fits and a.step is not None:
        said.append(f"{_duration(a.step.seconds)} a step")
    if a.fits and a.bill is not None:
        said.append(f"{' '.join(_time(a.bill.hours))}, at most {_amount(a.bill.kwh)} kWh")
        said += [] if a.bill.money is None else [f"{_amount(a.bill.money)} {a.currency}"]
    return ", ".join(said)


def _parts(a: Answer) -> list[str]:
    from tabulate import tabulate

    from peftbench.estimate.card.step_seconds import LIMITS
    from peftbench.estimate.tables import size

    e = a.estimate
    inside = f"peak {size(e.peak_bytes)}" if e.setting.program is None else f"reserved {size(e.reserved_bytes)}"
    rows: list[tuple[str, str, str]] = [
        (
            "needed",
            size(a.needed_bytes),
            f"{inside}, and {size(a.context_bytes)} outside tensors",
        ),
        ("the card", size(a.card.memory_bytes), f"{a.card.watts:g} W; {a.card.source}"),
    ]
    if a.card.bfloat16 is None and a.estimate.setting.dtype == "bfloat16":
        rows.append(("bfloat16", "not native", "matrix products run at the rate of float32, or not at all"))
    for name, found, unit in (("largest batch", a.largest_batch, ""), ("longest text", a.longest_text, " tokens")):
        why = "where the network's positions end, not the memory" if found.ends_with_positions else "by memory"
        rows.append((name, f"{found.value:,}{unit}", why if found.value else "nothing fits"))
    if a.step is None:
        rows.append(("seconds a step", "unknown", "the number of kernels is not affine in the number of layers"))
    else:
        s = a.step
        rows.append(("seconds a step", f"{s.seconds:.4g}", f"limited by {LIMITS[s.bound]}; {a.known_error}"))
        rows += [(f"  {name}", f"{value:.4g}", "") for name, value in s.phases.items()]
        rows.append(("  matrix products", f"{s.products:.4g}", "of these"))
        rows.append(("  other kernels", f"{s.others:.4g}", "of these"))
        rows.append(("  launches", f"{s.host:.4g}", "of the host, at the same time"))
        if s.transfers:
            rows.append(("  transfers", f"{s.transfers:.4g}", f"over {a.card.link / 1e9:g} GB/s, nothing beside them"))
    if a.bill is not None:
        rows.append(("steps", f"{a.bill.steps:,}", "every text as long as --seq says"))
        span, unit = _time(a.bill.hours)
        rows.append((unit, span, "without loading, evaluation and saving"))
        about = "upper bound: the cards at their power limit, without the host"
        rows.append(("energy", f"{_amount(a.bill.kwh)} kWh", about))
        if a.bill.money is not None:
            rows.append(("money", f"{_amount(a.bill.money)} {a.currency}", ""))
    return tabulate(rows, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True).splitlines()


def _changes(a: Answer) -> list[str]:
    from tabulate import tabulate

    from peftbench.estimate.tables import size

    def row(change: Change) -> tuple[str, str, str, str]:
        took = "" if change.seconds is None else f"{change.seconds:.4g} s for as many tokens"
        if change.gpus > a.gpus:
            took += f" on {change.gpus} cards"
        return change.what, size(change.needed_bytes), took, change.remark

    lines: list[str] = []
    if a.changes:
        rows = [row(change) for change in a.changes]
        lines.append("single changes that make it fit, the least time of cards first")
        lines += tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines()
    else:
        lines.append("no single change makes it fit")
    if a.pair is not None:
        lines.append("two changes that make it fit on the same cards")
        lines += tabulate([row(a.pair)], tablefmt="plain", disable_numparse=True).splitlines()
    elif not a.changes:
        lines.append("no two changes make it fit either")
    return lines


def _time(hours: float) -> tuple[str, str]:
    """Return a span of time and its unit: hours, or what is smaller where they would say little."""
    if hours >= 0.1:
        return f"{hours:,.2f}", "hours"
    return (f"{60 * hours:.2f}", "minutes") if hours >= 1 / 60 else (f"{3600 * hours:.3g}", "seconds")


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"
