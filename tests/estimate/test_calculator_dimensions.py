"""Sizes of a recorded network are read as products of its dimensions."""

from __future__ import annotations

from fractions import Fraction
from math import gcd, prod
from pathlib import Path

import pytest

from peftbench.estimate.calculator import dimensions, families, page, settings
from peftbench.estimate.calculator.dimensions import NAMES, PRIMES, VALUES, Sized, Unreadable, term
from peftbench.estimate.calculator.packed import text_of
from peftbench.estimate.calculator.recording import record
from peftbench.run.parallel import ranks


def exponents(**given: int) -> tuple[int, ...]:
    return tuple(given.get(name, 0) for name in NAMES)


def test_a_product_of_dimensions_has_one_reading() -> None:
    size = 4 * VALUES["b"] * VALUES["s"] * VALUES["h"]
    assert term(size) == (Fraction(4), exponents(b=1, s=1, h=1))


def test_a_share_of_a_weight_is_read_as_a_fraction() -> None:
    assert term(VALUES["h"] * VALUES["i"] // 64) == (Fraction(1, 64), exponents(h=1, i=1))


def test_a_square_is_read() -> None:
    assert term(2 * VALUES["s"] ** 2 * VALUES["b"]) == (Fraction(2), exponents(b=1, s=2))


def test_a_size_with_a_strange_factor_is_refused() -> None:
    with pytest.raises(Unreadable, match="103"):
        term(4 * VALUES["h"] * 103)


def test_a_dimension_that_is_one_is_not_read() -> None:
    values = {**VALUES, "b": 1}
    with pytest.raises(Unreadable, match="41"):
        term(4 * VALUES["h"] * 41, values)


def test_every_dimension_has_a_prime_that_no_other_and_no_constant_has() -> None:
    for name, prime in PRIMES.items():
        others = prod(value for other, value in VALUES.items() if other != name)
        assert VALUES[name] % prime == 0
        assert gcd(prime, others) == 1, name
        assert prime not in dimensions.COEFFICIENTS


def test_sums_and_multiples_of_sizes_keep_their_terms() -> None:
    one, other = Sized.of(4 * VALUES["h"] * VALUES["s"], VALUES), Sized.of(2 * VALUES["i"] * VALUES["s"], VALUES)
    total = sum([one, other, 3 * one]) - other
    assert int(total) == 16 * VALUES["h"] * VALUES["s"]
    assert total.terms == {exponents(h=1, s=1): Fraction(16)}


@pytest.mark.slow
def test_what_a_card_gathers_in_shards_is_read_as_the_sum_of_a_block(tmp_path: Path) -> None:
    values = families.readable("llama", False, tmp_path)
    step = settings.Step("hf-trainer", "bfloat16", True, False, "full", sharded=True)
    made = record(str(tmp_path), step.made(values["r"]), step.setting(), {**values, "b": 1})
    block = "4*h+4*h*K*D+4*h*K*G*D+6*h*i"  # two norms; k and v; q and o; gate, up and down, in bfloat16
    sent = {text_of(size): numbers for (phase, _, _, size), numbers in made.kernels.items() if phase == "sent"}
    assert sent[block] == (6, 10)  # for the forward and the backward of each layer
    weights = {text_of(life.size) for life in made.lives[0] if life.kind == "weights" and life.size}
    assert {"2*h*V*F", "2*h*i*F", "2*h*K*G*D*F"} <= weights


def test_the_page_sums_gradients_in_buckets_of_the_same_size() -> None:
    text = (page.HERE / "shards.js").read_text(encoding="utf-8")
    assert f"const BUCKET = {ranks.BUCKET // 2**20} * 2 ** 20;" in text
