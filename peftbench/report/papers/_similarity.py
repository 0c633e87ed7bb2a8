"""Similarity of the directions of two runs (LoRA, arXiv:2106.09685, section 7.2), from the probe `subspaces`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def vectors(kept: Mapping[str, Any], width: int) -> Array:
    """(count, width) right-singular vectors of a record, made orthonormal again after rounding to float16."""
    stored = np.frombuffer(base64.b64decode(kept["vectors"]), dtype="<f2").astype(np.float64).reshape(-1, width)
    basis, upper = np.linalg.qr(stored.T)  # Gram-Schmidt keeps the span of the first i
    return (basis * np.sign(np.diag(upper))).T


def similarity(a: Array, b: Array) -> Array:
    """phi of equation 4: (len(a), len(b)); entry [i - 1, j - 1] compares the first i rows of a with j of b.

    phi(i, j) = ||U_a^i U_b^j^T||_F^2 / min(i, j): 1 if one space contains the other, 0 if they are orthogonal.
    """
    squares = (a @ b.T) ** 2
    i, j = np.arange(1, len(a) + 1), np.arange(1, len(b) + 1)
    return squares.cumsum(0).cumsum(1) / np.minimum(i[:, None], j)


def by_chance(i: int, j: int, width: int) -> float:
    """The expectation of phi(i, j) for random spaces: i j / width over min(i, j)."""
    return max(i, j) / width
