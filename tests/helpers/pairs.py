"""Methods by networks: which pairs each test command tries."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def pairs(
    methods: Iterable[str],
    networks: Iterable[str],
    *,
    every_method_on: Sequence[str],
    on_every_network: Sequence[str],
    fast: Sequence[str] = (),
    beyond: str = "full",
) -> list[Any]:
    """Parameters (method, network): all methods on a few networks, a few on all; the others have the mark `beyond`.

    `fast` names the networks on which `make test-fast` tries them; the pairs on other networks are slow.
    """
    made = []
    for method, network in itertools.product(methods, networks):
        marks = [] if network in fast else [pytest.mark.slow]
        if network not in every_method_on and method not in on_every_network:
            marks.append(getattr(pytest.mark, beyond))
        made.append(pytest.param(method, network, marks=marks, id=f"{method}-{network}"))
    return made
