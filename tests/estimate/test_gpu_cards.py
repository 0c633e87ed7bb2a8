"""The file of cards is complete and plausible, and a mistyped card is named."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from peftbench.errors import UserError
from peftbench.estimate.card.cards import Card, card, cards, larger


@pytest.mark.parametrize("one", cards().values(), ids=lambda one: one.name)
def test_a_cards_figures_are_plausible(one: Card) -> None:
    assert 8 < one.memory_gib < 300
    assert 0.2e12 < one.bandwidth < 10e12
    assert 5e12 < one.float32 < 200e12
    if one.bfloat16 is not None:
        assert 1.9 <= one.bfloat16 / one.float32 < 40
        assert 20 < one.bfloat16 / one.bandwidth < 500  # operations a byte, where products begin to bound a step
    if one.tf32 is not None and one.bfloat16 is not None:
        assert one.bfloat16 / one.tf32 == pytest.approx(2, rel=0.05)
    assert 2 < one.cache_mb < 300
    assert 50 < one.watts <= 1200
    assert one.link < one.bandwidth
    assert one.source


@pytest.mark.parametrize("one", cards().values(), ids=lambda one: one.name)
def test_a_card_names_a_document_with_its_address_and_the_figures_that_none_states(one: Card) -> None:
    assert re.search(r"\w[\w.]+\.(com|net)/\S+", one.source)
    figures = {f.name for f in fields(Card)} - {"name", "source", "unchecked"}
    assert set(one.unchecked) <= figures
    assert "bandwidth" not in one.unchecked
    if one.bfloat16 is not None:
        assert "bfloat16" not in one.unchecked


def test_cards_of_one_chip_differ_as_their_clocks_and_units_do() -> None:
    # Operations a second are those of a unit in a clock, its clock and the units: NVIDIA's whitepapers name them.
    for name, units, clock, per_unit in (
        ("l4", 58, 2.04e9, 1024),
        ("a10", 72, 1.695e9, 1024),
        ("a10g", 80, 1.71e9, 512),
        ("rtx-a6000", 84, 1.8e9, 1024),
        ("a40", 84, 1.74e9, 1024),
        ("a100-80", 108, 1.41e9, 2048),
        ("h100", 132, 1.83e9, 4096),
        ("rtx-3060", 28, 1.78e9, 512),
        ("rtx-3090", 82, 1.695e9, 512),
        ("rtx-4090", 128, 2.52e9, 512),
        ("rtx-5090", 170, 2.407e9, 512),
        ("rtx-6000-ada", 142, 2.505e9, 1024),
        ("mi250x", 110, 1.7e9, 1024),
        ("mi300x", 304, 2.1e9, 2048),
    ):
        assert card(name).bfloat16 == pytest.approx(units * clock * per_unit, rel=0.005), name


def test_the_cards_that_people_rent_are_known() -> None:
    wanted = "l40s l4 t4 a10g rtx-a6000 a40 a100-40 a100-80 h100 h100-pcie h200 b200 v100-16 v100-32 rtx-3090 rtx-4090"
    assert {*wanted.split(), "rtx-5090", "rtx-6000-ada", "mi300x", "mi250x"} <= set(cards())


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("L40S", "l40s"),
        ("A100 80GB", "a100-80"),
        ("nvidia-h100", "h100"),
        ("3090", "rtx-3090"),
        ("RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("a6000", "rtx-a6000"),
        ("V100-32GB", "v100-32"),
    ],
)
def test_a_card_has_the_names_that_people_use(given: str, name: str) -> None:
    assert card(given).name == name


def test_an_unknown_card_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="--gpu: unknown card 'l40d'; did you mean 'l40s'"):
        card("l40d")


def test_a_card_without_bfloat16_computes_it_as_float32() -> None:
    assert card("t4").rate("bfloat16") == card("t4").rate("float32")
    assert card("t4").rate("float16") == 65e12
    assert card("h100").rate("bfloat16") > 10 * card("h100").rate("float32")


def test_larger_cards_come_the_smallest_first() -> None:
    sizes = [one.memory_bytes for one in larger(card("l40s"))]
    assert sizes == sorted(sizes)
    assert sizes[0] > card("l40s").memory_bytes
