"""A loop over pieces: all of them where there are numbers, and one that counts for its like where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from peftbench.estimate.count import ModelQuery
from peftbench.estimate.simulate import simulated_step
from peftbench.estimate.step_estimate import Setting, estimate
from peftbench.method.layers import lowrank, nf4_quantization
from peftbench.method.layers.pieces import alike_pieces_once, pieces

REAL, EMPTY = torch.zeros(1), torch.zeros(1, device="meta")


@pytest.mark.parametrize(("count", "step"), [(0, 4), (3, 4), (4, 4), (9, 4), (12, 4), (14, 4)])
@pytest.mark.parametrize("of", [REAL, EMPTY], ids=["real", "empty"])
def test_the_pieces_are_a_partition_outside_of_a_simulation(count: int, step: int, of: torch.Tensor) -> None:
    assert [i for part in pieces(count, step, of) for i in range(count)[part]] == list(range(count))


@pytest.mark.parametrize("count", [8, 9, 12, 14, 4_001])
def test_in_a_simulation_pieces_count_as_often_as_there_are_like_ones(count: int) -> None:
    seen: list[int] = []
    now = [1]

    @contextmanager
    def times(number: int) -> Iterator[None]:
        now[0] = number
        yield
        now[0] = 1

    with alike_pieces_once(times):
        for part in pieces(count, 4, EMPTY):
            seen += [part.stop - part.start] * now[0]
        assert [part.start for part in pieces(14, 4, REAL)] == [0, 4, 8, 12]  # numbers are all computed
    assert seen == [len(range(count)[start : start + 4]) for start in range(0, count, 4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "method"),
    [
        ("float32", "qdora"),
        ("bfloat16", "dora"),
        pytest.param("float32", "qlora", marks=pytest.mark.full),
        pytest.param("float32", "dora", marks=pytest.mark.full),
        pytest.param("bfloat16", "qlora", marks=pytest.mark.full),
        pytest.param("bfloat16", "qdora", marks=pytest.mark.full),
    ],
)
def test_a_simulation_by_like_pieces_predicts_what_one_of_all_pieces_predicts(
    method: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nf4_quantization, "_CHUNK", 1 << 10)
    monkeypatch.setattr(lowrank, "ROWS", 4)
    monkeypatch.setattr(lowrank, "CHUNK", 256)
    query, setting = ModelQuery("tiny-decoder"), Setting(3, 19, dtype)
    once = estimate(query, method, {}, setting)

    @contextmanager
    def every_piece(times: object = None) -> Iterator[None]:
        yield

    monkeypatch.setattr(simulated_step, "alike_pieces_once", every_piece)
    assert estimate(query, method, {}, setting) == once
