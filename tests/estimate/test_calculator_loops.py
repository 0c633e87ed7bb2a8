"""From a step at two depths, the page's script writes out that of any other depth."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from peftbench.estimate.calculator import event_stream, families, page, recording, settings
from peftbench.estimate.calculator.loops import Irregular, looped
from peftbench.estimate.calculator.packed import as_json, text_of

NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="the page's script runs in node")
SIZES = ["2*h*i", "2*h*V", "4*b*s*h", "4*b*s", "4*r*h", "8*r", "16*r", "28*r"]
WEIGHT, EMBEDDING, KEPT, TEMPORARY, GRADIENT = range(5)
NORMS = {2: 5, 4: 6, 7: 7}  # the size of what has a number for each parameter


class Step:
    """Storages in the order of their births, one event after another."""

    def __init__(self) -> None:
        self.storages: list[list[int]] = []  # size, born, died
        self.event = 1

    def begin(self, size: int) -> int:
        self.storages.append([size, self.event, -1])
        self.event += 1
        return len(self.storages) - 1

    def end(self, number: int) -> None:
        self.storages[number][2] = self.event
        self.event += 1

    def columns(self) -> event_stream.Columns:
        births = [born for _, born, _ in self.storages]
        later = [b - a for a, b in zip([0, *births], births, strict=False)]
        lengths = [died - born if died > 0 else -1 for _, born, died in self.storages]
        return [[size for size, *_ in self.storages], [0] * len(births), later, lengths]


def step(rounds: int, shuffled: bool = False, odd: bool = False) -> tuple[event_stream.Columns, list[int]]:
    """Passes forward and backward over the layers, an update in which the gradients end; and its parts' starts."""
    made, starts = Step(), [0]
    for size in (EMBEDDING, *[WEIGHT] * rounds):
        made.storages.append([size, 0, -1])
    kept = []
    for _ in range(rounds):
        kept.append(made.begin(KEPT))
        made.end(made.begin(TEMPORARY))
    starts.append(made.event)
    gradients = []
    for n, number in enumerate(reversed(kept)):
        gradients += [made.begin(GRADIENT), made.begin(GRADIENT + (1 if odd and n == 0 and rounds == 4 else 0))]
        made.end(number)
    starts.append(made.event)
    norms = made.begin(NORMS[rounds])
    ends = [*gradients]
    if shuffled:
        random.Random(rounds).shuffle(ends)
    for number in ends:
        made.end(number)
    made.begin(KEPT)
    made.end(norms)
    return made.columns(), starts


def recorded(**how: bool) -> dict[str, Any]:
    (one, first), (other, second) = step(2, **how), step(4, **how)
    starts = list(zip(first, second, strict=True))
    found = looped([one, other], SIZES, starts, (2, 4))
    pairs: dict[event_stream.Pair, int] = {}
    return {
        "numbers": [event_stream.numbers_of(lives, pairs) for lives in found.lives],
        "loops": [[loop.first, loop.second, loop.round, loop.length] for loop in found.loops],
        "parts": [[*both, int(n in found.unordered)] for n, both in enumerate(starts)],
        "phases": [1, first[1], first[2]],
        "pairs": list(pairs),
    }


def written_out(made: dict[str, Any], rounds: int) -> dict[str, Any]:
    script = f"""
        const {{ depthOf }} = require({str(page.HERE / "depths.js")!r}), step = {json.dumps(made)};
        console.log(JSON.stringify(depthOf(step, step.pairs, {rounds})));
    """
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def ends_of(columns: event_stream.Columns) -> list[int | None]:
    births = event_stream.births_of(columns)
    return [born + length if length >= 0 else None for born, length in zip(births, columns[3], strict=True)]


@NEEDS_NODE
@pytest.mark.parametrize("rounds", [2, 4, 7])
def test_a_depth_has_the_storages_of_its_layers(rounds: int) -> None:
    depth = written_out(recorded(), rounds)
    columns, starts = step(rounds)
    assert [life["born"] for life in depth["lives"]] == event_stream.births_of(columns)
    assert [life["died"] for life in depth["lives"]] == ends_of(columns)
    assert depth["parts"] == starts
    assert depth["phases"] == [1, *starts[1:]]
    sizes = [SIZES[life["size"]] if life["size"] == life["other"] else "norms" for life in depth["lives"]]
    assert sizes == ["norms" if size in NORMS.values() else SIZES[size] for size in columns[0]]
    assert depth["share"] == (rounds - 2) / 2


@NEEDS_NODE
def test_ends_in_no_order_are_put_into_that_of_the_births() -> None:
    made = recorded(shuffled=True)
    assert [part[2] for part in made["parts"]] == [0, 0, 1]
    columns, _ = step(7)
    assert [life["died"] for life in written_out(made, 7)["lives"]] == ends_of(columns)


def test_depths_that_differ_in_more_than_layers_are_refused() -> None:
    with pytest.raises(Irregular, match="by no loop"):
        recorded(odd=True)


@NEEDS_NODE
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "roles", "shards"), [("adalora", "q v", False), ("adapter", "", False), ("lora", "q v", True)]
)
def test_a_recorded_step_is_that_of_a_deeper_network(
    method: str, roles: str, shards: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**families.readable("llama", False, tmp_path), "b": 1}
    asked = settings.Step("hf-trainer", "bfloat16", True, False, method, roles, sharded=shards)
    how = str(tmp_path), asked.made(values["r"]), asked.setting(), values
    made = as_json(recording.record(*how))
    monkeypatch.setattr(recording, "ROUNDS_SHARDED" if shards else "ROUNDS", (2, 6))
    deep = recording.record(*how)
    pairs: dict[event_stream.Pair, int] = {}
    numbers = [event_stream.numbers_of(lives, pairs) for lives in made["lives"]]
    depth = written_out({**made, "numbers": numbers, "pairs": list(pairs)}, 6)
    sizes = [made["sizes"][life["size"]] if life["size"] == life["other"] else None for life in depth["lives"]]
    whole = deep.lives[1]
    assert len(sizes) == len(whole)
    assert all(size is None or size == text_of(life.size) for size, life in zip(sizes, whole, strict=True))
    began = [life.born for life in whole]

    def births_before(end: int | None) -> int:  # ends that follow one another may have any order
        return -1 if end is None else sum(born < end for born in began)

    assert [life["born"] for life in depth["lives"]] == began
    assert [births_before(life["died"]) for life in depth["lives"]] == [births_before(life.died) for life in whole]
    assert depth["events"] == deep.events[1]
