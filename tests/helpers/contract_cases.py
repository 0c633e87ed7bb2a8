"""What the contract is tried on: what `make test` runs of it, and what only `make test-all` adds.

A method's defaults are tried on every network. A setting changes the method's own layers, not the network around them,
so `make test` tries each setting once: on the encoder, which has biases, dropout and a task head, and on the decoder
what only padding and causality show. The rest of the matrix repeats these promises and is marked `full`.
"""

from __future__ import annotations

from collections.abc import Iterator

from peftbench.method.registry import discover
from peftbench.verify.contract import Case, Promise, promises, sequence, variants

NETWORKS = ("tiny-encoder", "tiny-decoder", "tiny-t5")
ABOUT_SEQUENCES = (
    sequence.padding_changes_nothing,
    sequence.the_future_changes_nothing,
    sequence.cached_generation_is_the_same,
)


def matrix() -> Iterator[tuple[Case, Promise]]:
    """Every promise of every registered method, in each of its settings, on each network that it has a meaning on."""
    for cls in discover().values():
        for network in NETWORKS:
            for hyper in variants(cls):
                case = Case(cls, hyper, network)
                yield from ((case, promise) for promise in promises(case))


def is_in_make_test(case: Case, promise: Promise) -> bool:
    """Whether `make test` tries this promise on this case.

    A method with `needs` refuses some network: all of its cases are tried, since the encoder may be the one.
    """
    if not case.hyper or case.method.needs or case.backbone == "tiny-encoder":
        return True
    return case.backbone == "tiny-decoder" and promise in ABOUT_SEQUENCES
