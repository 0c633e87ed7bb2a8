"""What the contract is tried on: what `make test` runs of it, and what only `make test-all` adds.

A method's defaults are tried on a network of every family. A setting changes what the method's own layers compute, not
the network around them nor how tensors are stored. So `make test` tries each setting once: on the first network that
takes the method, mostly the encoder, which has biases, dropout and a task head; and on the decoder what only padding
and causality show. On the other networks, which have a head or one part of another kind, `make test` tries the methods
and promises that meet this part. The rest of the matrix repeats these promises and is marked `full`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from peftbench.method.base import Method
from peftbench.method.registry import discover
from peftbench.verify.contract import Case, Promise, behaviour, promises, sequence, storage, training, variants
from peftbench.verify.contract.networks import FAMILIES, NETWORKS

ABOUT_SEQUENCES = (
    sequence.padding_changes_nothing,
    sequence.the_future_changes_nothing,
    sequence.cached_generation_is_the_same,
)

# What the machinery around a method keeps, whatever its numbers are.
ABOUT_THE_MACHINERY = (
    behaviour.describes_itself,
    training.checkpointing_keeps_the_gradients,
    training.two_runs_are_identical,
    training.resuming_changes_nothing,
    storage.swapping_adapters_is_exact,
    storage.foreign_adapters_are_refused,
)

# What the part that a network has beside its family's meets: a head, attention of another kind, experts.
MEETS = {
    "decoder-classifier": ("linear_probe", "lora", "prefix", "prompt"),
    "t5-classifier": ("linear_probe", "lora", "prefix"),
    "sliding-window": ("prefix", "prompt"),
    "soft-capping": ("adapter", "prefix"),
    "sinks": ("pissa", "prefix"),  # its experts have biases too
    "multi-query": ("lora", "prefix"),
    "experts": ("adapter", "ia3", "lora", "pissa"),
}
TELLING = (
    behaviour.starts_as_it_claims,
    training.every_trained_tensor_learns,
    storage.count_equals_the_formula,
    *ABOUT_SEQUENCES,
)


def matrix() -> Iterator[tuple[Case, Promise]]:
    """Every promise of every registered method, in each of its settings, on each network that it has a meaning on."""
    for cls in discover().values():
        settings = variants(cls)
        for network in NETWORKS:
            for hyper in settings:
                case = Case(cls, hyper, network)
                yield from ((case, promise) for promise in promises(case))


@cache
def first_network(cls: type[Method]) -> str | None:
    """The first network that the method takes: the encoder, unless it lacks what the method needs."""
    return next((name for name in FAMILIES if Case(cls, {}, name).refusal() is None), None)


def is_in_make_test(case: Case, promise: Promise) -> bool:
    """Whether `make test` tries this promise on this case."""
    if case.backbone not in FAMILIES:
        return not case.hyper and case.method.name in MEETS[case.backbone] and promise in TELLING
    if promise in ABOUT_THE_MACHINERY:
        return not case.hyper and case.backbone in (first_network(case.method), "tiny-decoder")
    if not case.hyper:
        return True
    if case.backbone == first_network(case.method):
        return True
    return case.backbone == "tiny-decoder" and promise in ABOUT_SEQUENCES
