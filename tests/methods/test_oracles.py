"""Our methods against other libraries' implementations with the same weights, in float64, to nine digits.

Output, every gradient, merged weights, and weights after five optimiser steps, on several architectures; what is mapped
onto what is said in `tests/helpers/oracle`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from architectures import Zoo

pytest.importorskip("peft")

from oracle.compare import CLOSE, Theirs, compare
from oracle.networks import Ours
from oracle.pairs import Pair
from oracle.registry import ARCHITECTURES, COUNTERPARTS

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),  # peft finds out by itself that GPT-2 stores transposed
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def matrix() -> list[Any]:
    """Every method on Llama, which is quick, and on BERT and GPT-2; the others only `make test-all` tries."""
    marks = {"llama": [], "bert": [pytest.mark.slow], "gpt2": [pytest.mark.slow]}
    return [
        pytest.param(name, architecture, look, marks=marks.get(architecture, [pytest.mark.slow, pytest.mark.full]))
        for name, counterpart in COUNTERPARTS.items()
        for architecture in ARCHITECTURES
        for look in counterpart.looks(architecture)
    ]


@pytest.fixture(scope="module")
def found(zoo: Zoo) -> Callable[[str, str], dict[str, float | None]]:
    """The differences of a method on an architecture, computed once."""
    known: dict[tuple[str, str], dict[str, float | None]] = {}

    def differences(name: str, architecture: str) -> dict[str, float | None]:
        if (name, architecture) not in known:
            known[name, architecture] = compare(COUNTERPARTS[name], zoo[architecture])
        return known[name, architecture]

    return differences


@pytest.mark.parametrize(("name", "architecture", "look"), matrix())
def test_another_implementation_agrees(found: Any, name: str, architecture: str, look: str) -> None:
    assert found(name, architecture)[look] <= CLOSE


# What the comparison sees


def changed(name: str, change: Callable[[Theirs], None]) -> Any:
    """The counterpart with a mistake in it."""
    good = COUNTERPARTS[name]

    def make(ours: Ours) -> Theirs:
        theirs = good.make(ours)
        change(theirs)
        return theirs

    return replace(good, make=make)


def _another_scale(theirs: Theirs) -> None:
    for module in theirs.net.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 1.01


def _swapped_thirds(theirs: Theirs) -> None:
    names = [n for n in theirs.pairs if n.endswith(".q.B")]
    for q in names:
        v = q.replace(".q.B", ".v.B")
        theirs.pairs[q], theirs.pairs[v] = theirs.pairs[v], theirs.pairs[q]


def _one_transposed(theirs: Theirs) -> None:
    name = next(n for n, pair in theirs.pairs.items() if n.endswith(".K"))
    pair = theirs.pairs[name]
    theirs.pairs[name] = Pair(pair.theirs, pair.where.flip(0))


MISTAKES = [
    ("lora", "bert", _another_scale),
    ("lora", "gpt2", _swapped_thirds),
    ("lora", "gpt-neox", _swapped_thirds),
    ("prefix", "llama", _one_transposed),
]


@pytest.mark.parametrize(("name", "architecture", "mistake"), MISTAKES)
def test_a_mistake_shows_in_everything_that_is_compared(
    zoo: Zoo, name: str, architecture: str, mistake: Callable[[Theirs], None]
) -> None:
    differences = compare(changed(name, mistake), zoo[architecture])
    assert all(differences[look] > 1e-6 for look in COUNTERPARTS[name].looks(architecture))


def test_positions_that_peft_does_not_shift_are_seen(zoo: Zoo) -> None:
    """Without the shift, as ours has it, the two differ."""

    def unshifted(ours: Ours) -> Theirs:
        theirs = COUNTERPARTS["prefix"].make(ours)
        return Theirs(theirs.net, theirs.pairs)

    for architecture in ("bert", "llama"):
        assert compare(replace(COUNTERPARTS["prefix"], make=unshifted), zoo[architecture])["output"] > 1e-3


def test_without_the_mask_a_fused_update_learns_more_than_ours(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why blocks that ours does not have get no gradient: in `peft` they would, and the networks part ways."""
    monkeypatch.setattr("oracle.compare.unmapped", lambda pairs: [(p.theirs, p.where < 0) for p in pairs.values()])
    differences = compare(COUNTERPARTS["lora"], zoo["gpt2"])
    assert max(differences["output"], differences["gradient"], differences["merge"]) <= CLOSE
    assert differences["steps"] > 1e-3
