"""How long a run will take, roughly: from finished runs like it, or else from arithmetic.

The arithmetic counts the products of matrices: 2 operations a weight and token forward, and backward as many again for
the gradient of the activations (none where only the head trains) and, where the base trains, as many for the gradient
of the weights. It leaves out attention, optimiser and Python: good for planning an afternoon, and always printed with
a tilde.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from peftbench.plan import Planned
from peftbench.record import Record

TOKENS_PER_WORD = 1.4
EFFICIENCY = 0.5  # of the rate that plain matrix products reach
SETUP_SECONDS = 1.0  # of each run: attach, tokenise or read the cache, write the record
DECODING = 8.0  # generating a token alone moves all weights for one token's worth of arithmetic


def seconds(
    planned: Sequence[Planned], records: Iterable[Record], flops_per_second: float, jobs: int = 1
) -> dict[str, float]:
    """By spec id, the predicted seconds of each run when `jobs` of them share the machine.

    Finished runs are taken to have shared it likewise.
    """
    known: dict[tuple[str, str], list[float]] = {}
    for r in records:
        if r.kind == "run" and r.is_finished:
            spent = r.body["seconds"]["total"] / r.spec["train"]["steps"]
            known.setdefault((r.spec["method"]["label"], r.spec["task"]["name"]), []).append(spent)
    found = {}
    for p in planned:
        like = known.get((p.label, p.spec.task.name))
        found[p.spec.id] = median(like) * p.spec.train.steps if like else _computed(p, flops_per_second / jobs)
    return found


def _computed(p: Planned, flops_per_second: float) -> float:
    train, sites, rows = p.spec.train, p.task.sites, p.task.rows
    tokens = min(train.max_length, TOKENS_PER_WORD * p.task.mean_words + 2)
    linear = sum(s.size[0] * s.size[1] for s in sites.linear())
    weights = linear if linear and p.task.kind != "generation" else sites.base  # causal: the vocabulary multiplies too
    per_token = 6 if p.trainable >= sites.base else 4 if p.trainable else 2
    steps = train.steps * train.batch_size * tokens * per_token * weights
    evaluations = 1 + (train.steps // train.eval_every if train.eval_every else 0)
    looked_at = rows["validation"] * evaluations + rows["test"]
    evaluated = looked_at * tokens * 2 * weights * (DECODING if p.task.kind == "generation" else 1)
    return SETUP_SECONDS + (steps + evaluated) / (EFFICIENCY * flops_per_second)
