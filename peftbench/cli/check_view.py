"""The output of `check-method`: whether each promise is kept or broken, and what to look at for a broken one."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from peftbench.cli.options import say
from peftbench.method.base import Method
from peftbench.method.registry import source
from peftbench.verify.check_method import Examination, OnCase, setting, settings
from peftbench.verify.contract import PROMISES, Promise, PromiseVerdict
from peftbench.verify.contract.networks import NETWORKS

LOOK_AT = {  # the likely cause of a broken promise
    "describes_itself": "the class: docstring, facts, each Field(...), and that __post_init__ raises UserErrors only",
    "starts_as_it_claims": "the initial values of the new tensors, and starts_as_identity",
    "evaluation_is_deterministic": "forward: self.training around dropout, random numbers, counters, mixing of rows",
    "only_declared_tensors_move": "attach and optimizer: requires_grad on tensors of the base; after_step",
    "every_trained_tensor_learns": "forward and optimizer: a tensor that is unused, always zero, or never stepped",
    "resuming_changes_nothing": "what lasts from step to step: keep it in tensors, numbers, lists or dicts of modules",
    "two_runs_are_identical": "the initial values: draw them with torch alone, and keep nothing between runs",
    "checkpointing_keeps_the_gradients": "forward: it runs twice under checkpointing, so it may keep no count",
    "bfloat16_stays_close": "the dtypes: new tensors float32, the result in that of the base's output (.to(y.dtype))",
    "undo_is_exact": "attach: change the network through `edit` only",
    "merging_computes_the_same": "folded: scale, transposition and bias, and that it makes a new layer",
    "finishing_changes_nothing": "finish: the same outputs after it, and after a second call",
    "count_equals_the_formula": "parameters(sites): biases, shared tensors, each role's own sizes",
    "state_is_what_training_changes": "the modules: what trains is an nn.Parameter outside self.base, and not shared",
    "saving_and_loading_is_exact": "the modules: what forward needs is a Parameter or a persistent buffer",
    "swapping_adapters_is_exact": "forward: nothing computed from the tensors may be kept between calls",
    "foreign_adapters_are_refused": "the tensors' names and shapes: they must tell sizes apart",
    "padding_changes_nothing": "forward: no mean or norm over the sentence; masks cover what is put in",
    "the_future_changes_nothing": "forward: no operation along the sequence that reaches to later tokens",
    "cached_generation_is_the_same": "forward: with a cache it sees one new token, and must not treat it as the first",
}


def as_dict(examination: Examination) -> dict[str, Any]:
    """Return the examination as JSON values, with one entry for each promise."""
    return {
        "method": examination.method.name,
        "sound": examination.sound,
        "networks": examination.networks,
        "refused": [{"network": c.backbone, "hyper": dict(c.hyper), "why": why} for c, why in examination.refused],
        "promises": [
            {
                "promise": p.__name__,
                "says": _sentence(p),
                "outcome": _outcome(examination, p),
                "tried": examination.tries(p),
                "broken": [
                    {"network": c.backbone, "hyper": dict(c.hyper), "why": v.why, "at": v.at}
                    for c, v in examination.broken(p)
                ],
            }
            for p in PROMISES
        ],
        "summary": summary(examination),
    }


def text(examination: Examination, width: int = 100) -> str:
    """Return the examination as text: one sentence for each promise, then the summary.

    A broken promise has its reasons and what to look at below it.

    Args:
        examination: the result of `examine`.
        width: the largest number of characters in a line.
    """
    lines = []
    for promise in PROMISES:
        outcome = _outcome(examination, promise)
        mark = {"kept": "kept    ", "broken": "BROKEN  "}.get(outcome, "n/a     ")
        lines.append(f"{mark}{promise.__name__.replace('_', ' ')}: {_sentence(promise)}")
        if outcome == "not applicable":
            lines.append(f"          not applicable: {'; '.join(dict.fromkeys(examination.refusals.values()))}")
        if outcome == "not tried":
            lines.append("          not tried: there is no instance to try it on")
        lines += [f"          {line}" for line in _reasons(examination, promise)]
    if examination.refused:
        lines += ["", "Not tried, because the method refuses it:"]
        lines += [f"  {NETWORKS[c.backbone].says}, {setting(c.hyper)}: {why}" for c, why in examination.refused]
    lines += ["", summary(examination)]
    title = f"{examination.method.name} ({source(examination.method)})"
    return "\n".join([title, "", *(_wrapped(line, width) for line in lines)])


def _wrapped(line: str, width: int) -> str:
    """Wrap a line at `width` characters, without breaking words, and indent the lines after the first."""
    indent = line[: len(line) - len(line.lstrip())]
    after = indent + ("  " if indent else " " * 8 if line[:8] in ("kept    ", "BROKEN  ", "n/a     ") else "")
    return textwrap.fill(line, width, subsequent_indent=after, break_long_words=False, break_on_hyphens=False)


def _listed(words: list[str]) -> str:
    """Join words: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def summary(examination: Examination) -> str:
    """Return one sentence: whether the method keeps the promises, on which networks."""
    name, where = examination.method.name, _listed([NETWORKS[n].says for n in examination.networks])
    if not examination.tried:
        why = "; ".join(dict.fromkeys(examination.refusals.values()))
        return f"{name} refuses every network, so that no promise could be tried: {why}"
    broken = [p.__name__.replace("_", " ") for p in PROMISES if examination.broken(p)]
    if broken:
        return f"{name} breaks {_count(len(broken), 'promise')}: {', '.join(broken)}"
    count = sum(examination.tries(p) > 0 for p in PROMISES)
    every = "all" if count == len(PROMISES) else "the"
    scope = "" if count == len(PROMISES) else " that apply"
    tried = len({setting(c.hyper) for c, _ in examination.tried})
    return f"{name} keeps {every} {_count(count, 'promise')}{scope} on {where} in {_count(tried, 'setting')}"


@contextlib.contextmanager
def progress(
    classes: list[type[Method]], networks: Collection[str], given: Mapping[str, Any] | None = None
) -> Iterator[OnCase]:
    """Show the progress of an examination: a bar on a terminal, else lines. Both use stderr.

    Args:
        classes: the methods to examine.
        networks: the networks to try them on.
        given: hyperparameters to try alone.

    Yields:
        The function to call with each case and its verdicts, or with the reason of a refusal.
    """
    if not sys.stderr.isatty():
        yield lambda case, result: say(f"{case}: {_short(result)}", sys.stderr)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=len(networks) * sum(len(settings(cls, given)) for cls in classes))
        yield lambda case, result: bar.update(task, advance=1, description=f"{case}: {_short(result)}")


def _short(result: list[PromiseVerdict] | str) -> str:
    if isinstance(result, str):
        return "refused"
    return f"{sum(v.kept for v in result)} of {len(result)} kept"


def _sentence(promise: Promise) -> str:
    return (promise.__doc__ or "").strip().splitlines()[0]


def _outcome(examination: Examination, promise: Promise) -> str:
    if examination.broken(promise):
        return "broken"
    if examination.tries(promise):
        return "kept"
    return "not applicable" if examination.refusals else "not tried"


def _reasons(examination: Examination, promise: Promise) -> Iterator[str]:
    """Yield the first two distinct reasons with a setting that shows each, then the number of failures."""
    broken, shown = examination.broken(promise), set()
    for case, verdict in broken:
        if (verdict.why, verdict.at) in shown:
            continue
        shown.add((verdict.why, verdict.at))
        if len(shown) > 2:
            break
        yield f"on {NETWORKS[case.backbone].says}, {setting(case.hyper)}: {verdict.why}" + (
            f" (at {verdict.at})" if verdict.at else ""
        )
    if broken:
        yield f"broken in {len(broken)} of {examination.tries(promise)} tries; look at {LOOK_AT[promise.__name__]}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
