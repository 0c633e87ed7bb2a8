"""The storages of steps are the same after they were written as one stream, in Python and in the page's script."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from peftbench.estimate.calculator import page
from peftbench.estimate.calculator.event_stream import Columns, lives_of, numbers_of, stream_of

NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="the page's script runs in node")


def step(weight: int, rounds: int) -> Columns:
    """Four weights, one of which ends first; in each round a kept activation and a temporary; then the ends."""
    own: Columns = [[weight] * 4, [0] * 4, [0] * 4, [-1, 1, -1, -1]]
    last, events = 0, 2 + 4 * rounds
    for n in range(rounds):
        kept, ends = 2 + 4 * n, events + rounds - n
        for born, size, kind, died in ((kept, 11, 5, ends), (kept + 1, 12, 6, kept + 2)):
            for column, value in zip(own, (size, kind, born - last, died - born), strict=True):
                column.append(value)
            last = born
    return own


LIVES = [step(weight, rounds) for weight in (1, 2) for rounds in (2, 4)]


def test_storages_are_read_as_they_were_written() -> None:
    assert lives_of(*stream_of(LIVES)) == LIVES


@NEEDS_NODE
def test_the_page_reads_the_numbers_of_each_step() -> None:
    pairs, stream = stream_of(LIVES)
    read = json.dumps({"pairs": pairs, "stream": stream, "steps": {"a": {}, "b": {}}})
    script = f"console.log(JSON.stringify(require({str(page.HERE / 'events.js')!r}).withNumbers({read}).steps))"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    numbered = dict(zip(pairs, range(len(pairs)), strict=True))
    numbers = [numbers_of(own, numbered) for own in LIVES]
    assert json.loads(done.stdout) == {"a": {"numbers": numbers[:2]}, "b": {"numbers": numbers[2:]}}


def test_a_step_that_repeats_takes_two_numbers() -> None:
    once, twice = (stream_of(LIVES[:1] * n)[1] for n in (1, 2))
    assert len(twice) == len(once) + 2


def test_two_changes_at_one_event_are_refused() -> None:
    with pytest.raises(ValueError, match="one event"):
        stream_of([[[1, 1], [0, 0], [1, 1], [3, 2]]])
