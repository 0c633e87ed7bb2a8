"""Read a number of bytes as a product of named dimensions.

A recorded network has dimensions that are multiples of primes of their own. So the size of a tensor, which is a
product, has one reading only: its factors say which dimensions it has, and what remains is a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

# The value of each dimension in a recorded network. Powers of two are those that blocks of 4-bit numbers fill exactly.
VALUES: dict[str, int] = {
    "b": 41,  # texts
    "s": 8 * 113,  # tokens of a text
    "r": 2 * 47,  # rank, bottleneck or length of the method
    "h": 3 * 2**11 * 17,  # hidden size
    "i": 3 * 256 * 701,  # inner size of the feed-forward network, the largest width as in real ones
    "V": 3 * 64 * 401,  # vocabulary
    "K": 3 * 13,  # key and value heads
    "G": 29,  # query heads for each of them
    "g": 31,  # query, key and value heads for each of them, where one matrix makes all three
    "D": 8 * 19,  # size of a head; libraries take another way above 256
    "t": 8 * 113 + 2 * 47,  # tokens of a text behind a prompt or a prefix
    "p": 8 * 113 + 1,  # tokens of a text and one that pads its labels
    "m": 8 * 113 - 1,  # tokens of a text that have a next one
    "n": 8 * 113 + 2 * 47 - 1,  # the same behind a prompt
    "u": 8 * 113 + 2 * 47 + 1,  # behind a prompt, and one
    # Numbers of a 4-bit weight that are computed at once: of q and o, of k and v, and of gate, up and down.
    "x": 2**14 * 59,
    "y": 2**14 * 61,
    "z": 2**14 * 67,
}
PRIMES = {
    "b": 41,
    "s": 113,
    "r": 47,
    "h": 17,
    "i": 701,
    "V": 401,
    "K": 13,
    "G": 29,
    "g": 31,
    "D": 19,
    "t": 499,
    "p": 181,
    "u": 37,
    "m": 43,
    "n": 997,
    "x": 59,
    "y": 61,
    "z": 67,
}
SHARDS = 3  # of a recorded network in shards; it divides the rows of every matrix, and no number of bytes
NAMES = (*VALUES, "N", "F")  # the last two are the shards and one of them, which no size alone tells (shard_sizes.py)
CONSTANT = 2_048  # smaller numbers may count parameters: they are read only of storages that any depth has
COEFFICIENTS = (2, 3, 5, 7)  # primes that a constant may have

Term = tuple[Fraction, tuple[int, ...]]  # constant, exponent of each dimension


class Unreadable(ValueError):
    """A number that is not a product of the dimensions."""


def term(size: int, values: Mapping[str, int] = VALUES, smallest: int = CONSTANT) -> Term:
    """Return the constant and the exponents of a size.

    Args:
        size: The number.
        values: Of the dimensions in the recorded step; those that are 1 are not read.
        smallest: Smaller numbers are constants.

    Raises:
        Unreadable: A factor belongs to no dimension.
    """
    exponents = dict.fromkeys(NAMES, 0)
    if size < smallest:
        return Fraction(size), tuple(exponents.values())
    rest, constant = size, Fraction(size)
    for name, prime in PRIMES.items():
        while values[name] > 1 and rest % prime == 0:
            rest //= prime
            exponents[name] += 1
            constant /= values[name]
    for prime in COEFFICIENTS:
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        raise Unreadable(f"{size} has the factor {rest}, which belongs to no dimension")
    return constant, tuple(exponents.values())


class Sized(int):
    """A number of bytes that remembers the terms that it is a sum of."""

    terms: dict[tuple[int, ...], Fraction]

    @classmethod
    def of(cls, size: int, values: Mapping[str, int]) -> Sized:
        """Return the number with its reading."""
        constant, exponents = term(size, values)
        return cls.made(size, {exponents: constant})

    @classmethod
    def made(cls, size: int, terms: dict[tuple[int, ...], Fraction]) -> Sized:
        """Return a number with given terms."""
        one = cls(size)
        one.terms = {key: value for key, value in terms.items() if value}
        return one

    def __add__(self, other: int) -> Sized:
        terms = dict(self.terms)
        for key, value in _terms(other).items():
            terms[key] = terms.get(key, Fraction(0)) + value
        return Sized.made(int(self) + int(other), terms)

    __radd__ = __add__

    def __sub__(self, other: int) -> Sized:
        return self + (-1 * other if isinstance(other, Sized) else -other)

    def __rsub__(self, other: int) -> Sized:
        return -1 * self + other

    def __mul__(self, factor: int) -> Sized:
        return Sized.made(int(self) * factor, {key: value * factor for key, value in self.terms.items()})

    __rmul__ = __mul__


def _terms(number: int) -> dict[tuple[int, ...], Fraction]:
    if isinstance(number, Sized):
        return number.terms
    return {(0,) * len(NAMES): Fraction(number)} if number else {}
