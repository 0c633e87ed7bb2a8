"""Recordings are packed with every size that storages have read as dimensions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftbench.estimate.calculator import packed
from peftbench.estimate.calculator.dimensions import VALUES

ADAPTER = "hf-trainer|bf16|all|many|adapter|"


def step(sizes: list[str], one: list[int], other: list[int], key: str = ADAPTER) -> dict[str, Any]:
    """A recorded step whose storages have these sizes, by index, at each depth."""
    lives = [[own, [5] * len(own), [1] * len(own), [-1] * len(own)] for own in (one, other)]
    return {
        "key": key,
        "sizes": sizes,
        "lives": lives,
        "events": [9, 9],
        "parts": [],
        "loops": [],
        "phases": [],
        "kernels": [],
    }


@pytest.fixture
def packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def pack(made: dict[str, Any]) -> dict[str, Any]:
        folder = tmp_path / "build" / "llama"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "one.json").write_text(json.dumps(made), encoding="utf-8")
        monkeypatch.setattr(packed, "FOLDER", tmp_path / "packed")
        packed.pack(tmp_path / "build")
        return packed.unpacked(packed.read(tmp_path / "packed" / "llama.json.gz"))

    return pack


def test_a_small_size_that_both_depths_have_is_read(packing: Any) -> None:
    size = 2 * VALUES["r"]
    made = packing(step([str(size)], [0], [0, 0]))
    assert made["sizes"] == ["2*r"]


def test_a_small_size_that_one_depth_has_counts_its_parameters(packing: Any) -> None:
    count = 4 * VALUES["r"]
    made = packing(step(["8", str(count)], [0, 1], [0, 0]))
    assert made["sizes"] == ["8", str(count)]


def test_another_recording_leaves_those_of_the_package_as_they_are(packing: Any) -> None:
    first = packing(step(["2*h*i", "4*b*s"], [0, 1], [1, 1]))
    other = packing(step(["4*b*s"], [0], [0, 0], ADAPTER + "|shards"))
    assert list(other["steps"]) == [ADAPTER, ADAPTER + "|shards"]
    assert other["steps"][ADAPTER] == first["steps"][ADAPTER]
    assert other["sizes"][: len(first["sizes"])] == first["sizes"]


def test_a_step_that_is_recorded_again_replaces_the_one_before(packing: Any) -> None:
    packing(step(["2*h*i"], [0], [0]))
    again = packing(step(["4*b*s"], [0], [0]))
    (kept,) = again["steps"].values()
    assert [again["sizes"][i] for i in kept["lives"][0][0]] == ["4*b*s"]
