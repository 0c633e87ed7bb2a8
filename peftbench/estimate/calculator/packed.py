"""Write recordings small, one file for each family, and read them.

A file is gzipped JSON: "sizes", every size as a text such as "4*b*s*h+2*h*i"; "pairs" and "stream", the storages of all
steps in their order (event_stream.py); "steps", by name:

    lives: for each depth four lists: index of the size, index of the kind, birth (difference to the one before), events
        until the end (-1: it outlives the step). In the file they are in the stream
    events: number of events at each depth
    parts: [first event, the same at the second depth, 1 where ends have no order]
    loops: [place among the step's numbers in the stream, the same at the second depth, numbers of a round, numbers of
        all rounds at the first depth] (loops.py)
    phases: first event of forward, backward and optimizer
    kernels: [phase, dtype, operations, bytes, number at the first depth, number at the second], the sizes by index
    rounds: the depths, where they are not 2 and 4 rounds of layers
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftbench.estimate.calculator import event_stream
from peftbench.estimate.calculator.dimensions import NAMES, VALUES, term
from peftbench.estimate.calculator.loops import looped
from peftbench.estimate.calculator.recording import KINDS, ROUNDS, SENT, UPDATE, Life, Recording, Terms
from peftbench.estimate.calculator.settings import is_left_out
from peftbench.measure.memory import PHASES

FOLDER = Path(__file__).parent / "recorded"
SMALLEST = 16  # bytes; scalars have fewer
PRODUCTS = ("", "bfloat16", "float32")


def as_json(recording: Recording) -> dict[str, Any]:
    """Return a recording with a list of its sizes of its own.

    Raises:
        Irregular: Its depths differ in more than rounds of layers.
    """
    sizes: dict[str, int] = {}

    def place(terms: Terms) -> int:
        return sizes.setdefault(text_of(terms), len(sizes))

    lives = [_columns(own, place) for own in recording.lives]
    kernels = [
        [(*PHASES, UPDATE, SENT).index(phase), PRODUCTS.index(dtype), place(operations), place(moved), *numbers]
        for (phase, dtype, operations, moved), numbers in recording.kernels.items()
    ]
    made = looped(lives, list(sizes), recording.parts, recording.rounds)
    return {
        "sizes": list(sizes),
        "lives": made.lives,
        "events": recording.events,
        "parts": [[*starts, int(n in made.unordered)] for n, starts in enumerate(recording.parts)],
        "loops": [[loop.first, loop.second, loop.round, loop.length] for loop in made.loops],
        "phases": [start for start, _ in recording.phases],
        "kernels": kernels,
        **({"rounds": recording.rounds} if recording.rounds != ROUNDS else {}),
    }


def _columns(lives: Sequence[Life], place: Callable[[Terms], int]) -> list[list[int]]:
    births = [life.born for life in lives]
    return [
        [place(life.size) for life in lives],
        [KINDS.index(life.kind) for life in lives],
        [b - a for a, b in zip([0, *births], births, strict=False)],
        [-1 if life.died is None else life.died - life.born for life in lives],
    ]


def text_of(terms: Terms) -> str:
    """Return a sum of products as text, such as "4*b*s*h+2*h*i"."""
    products = []
    for exponents, constant in terms:
        number = int(constant) if constant.denominator == 1 else float(constant)
        names = [name for name, n in zip(NAMES, exponents, strict=True) for _ in range(n)]
        products.append("*".join([repr(number), *names]))
    return "+".join(products) or "0"


def pack(build: Path) -> None:
    """Write the files of the package, with the recordings in a folder, which has a folder for each family.

    What the package has and the folder has not stays.
    """
    FOLDER.mkdir(exist_ok=True)
    for family in sorted(path for path in build.iterdir() if path.is_dir()):
        target = FOLDER / f"{family.name}.json.gz"
        had = unpacked(read(target)) if target.exists() else {"sizes": [], "steps": {}}
        sizes = {text: n for n, text in enumerate(had["sizes"])}
        steps = {key: step for key, step in had["steps"].items() if not is_left_out(key, family.name)}
        for path in sorted(family.glob("*.json")):
            step = json.loads(path.read_text(encoding="utf-8"))
            if "refused" not in step and not is_left_out(step["key"], family.name):
                steps[step["key"]] = _renumbered(step, sizes)
        if steps:
            target.write_bytes(_compressed({"sizes": list(sizes), "steps": dict(sorted(steps.items()))}))


def _compressed(family: Mapping[str, Any]) -> bytes:
    """Return the content of a family's file."""
    pairs, stream = event_stream.stream_of(own for step in family["steps"].values() for own in step["lives"])
    steps = {
        key: {name: value for name, value in step.items() if name != "lives"} for key, step in family["steps"].items()
    }
    written = {"sizes": family["sizes"], "pairs": pairs, "stream": stream, "steps": steps}
    return gzip.compress(json.dumps(written, separators=(",", ":")).encode(), 9, mtime=0)


def read(path: Path) -> dict[str, Any]:
    """Return a family's file."""
    family: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return family


def unpacked(family: Mapping[str, Any]) -> dict[str, Any]:
    """Return a family with the storages at each of its steps."""
    lives = iter(event_stream.lives_of(family["pairs"], family["stream"]))
    steps = {key: {**step, "lives": [next(lives), next(lives)]} for key, step in family["steps"].items()}
    return {"sizes": family["sizes"], "steps": steps}


def _renumbered(step: Mapping[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """Return a step whose sizes are numbered as in the whole file."""
    to = [sizes.setdefault(text, len(sizes)) for text in _small_read(step)]
    return {
        "lives": _renumbered_lives(step, sizes),
        **{key: step[key] for key in ("events", "parts", "loops", "phases", "rounds") if key in step},
        "kernels": [[phase, dtype, to[f], to[m], *numbers] for phase, dtype, f, m, *numbers in step["kernels"]],
    }


def _renumbered_lives(step: Mapping[str, Any], sizes: dict[str, int]) -> list[list[list[int]]]:
    to = [sizes.setdefault(text, len(sizes)) for text in _small_read(step)]
    return [[[to[i] for i in own[0]], *own[1:]] for own in step["lives"]]


def _small_read(step: Mapping[str, Any]) -> list[str]:
    """Return the sizes of a step, with the small ones read that storages of both depths have.

    The others count the parameters of a depth.
    """
    one, other = (set(own[0]) for own in step["lives"])
    values = VALUES if "|many|" in step["key"] else {**VALUES, "b": 1}
    return [
        _read(int(text), values) if n in one & other and text.isdecimal() and int(text) >= SMALLEST else text
        for n, text in enumerate(step["sizes"])
    ]


def _read(size: int, values: Mapping[str, int]) -> str:
    constant, exponents = term(size, values, SMALLEST)
    return text_of(((exponents, constant),))
