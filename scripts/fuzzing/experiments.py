"""Experiment files that somebody damaged, mistyped or wrote to do harm: text and structure of ours, changed.

Most are planned up to the selection of runs, where an unknown seed stops them; some are planned whole.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fuzzing.case import Case

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = """\
name: tiny
description: a small one
backbone: {model: tiny-encoder}
tasks: [{task: synthetic/classification, rows: 60, steps: 3}]
budget: {trainable_params: 2000, tolerance: 0.2, steps: 3, seeds: 2, max_length: 16, batch_size: 4}
train: {warmup: 0.1, decay: linear, clip: 1.0}
profile: {processes: 1, rounds: 1, warmup: 0, latency: {batches: [1], lengths: [8]}}
reference: full
methods: [full, {lora: {rank: 2, lr: [1e-3, 5e-3], label: small}}]
"""
SCALARS = (
    *(
        "null",
        "~",
        "true",
        "yes",
        "off",
        "NaN",
        ".nan",
        ".inf",
        "-.inf",
        "0",
        "-1",
        "1.5",
        "010",
        "0x10",
        "0o7",
        "1_000",
    ),
    *(
        "1:30",
        "2024-01-31",
        "1e400",
        "1e-400",
        "1e-3",
        "''",
        '"\\0"',
        '"\\uD800"',
        '"\\x1b[2J"',
        "'\u202e'",
        "[]",
        "{}",
    ),
    *("[[]]", "{a: {b: c}}", "!!python/object:os.system x", "!!binary aGk=", "!!set {a}", "!!timestamp 2024-01-31"),
    *(
        "!x y",
        "&a [*a]",
        "*a",
        "<<",
        "=",
        "|\n  x",
        ">-\n  x",
        "1" + "0" * 23,
        "1" + "0" * 400,
        "1" + "0" * 5000,
        "x" * 5000,
    ),
    *("[" * 200, "-", "?", ":", "#", "%", "@", "`", "/dev/zero", "~nobody/x", "../..", "*", "full", "lora", "cuda:99"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**23, 10**399, 0.0, -1.5, 1e-320, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "x" * 5000, "x y " * 2000, "é", "\U0001f4a5", "a\nb", "/dev/zero", "local", "full", "glue/rte"),
    *(
        [],
        {},
        [None],
        [[]],
        [1, [2]],
        {"a": None},
        {"": 1},
        ["full"] * 300,
        list(range(3000)),
        {"lora": {"rank": 10**9}},
    ),
)
CHARACTERS = "\0\t\r\n\x1b\x85\u2028\ufeff\ufffe\u202e:{}[],&*#?|->!%@`'\"\\ 0aé\U0001f4a5"


def cases(rng: random.Random, count: int, folder: Path) -> Iterator[Case]:
    """Yield experiments that were changed, each with a command line that ends soon."""
    texts = [TINY] * 3 + [_tiny(p.read_text(encoding="utf-8")) for p in sorted((ROOT / "experiments").rglob("*.yaml"))]
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        change = rng.choice([*_OF_TEXT, _structure, _structure, _structure])
        content: str | bytes = rng.choice(texts)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            content = change(rng, content) if isinstance(content, str) else content
        (place / "e.yaml").write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
        command = rng.choice(("plan", "plan", "plan", "run", "profile"))
        whole = command == "plan" and rng.random() < 0.2
        yield Case(change.__name__, (command, "e.yaml", *(() if whole else ("--only", "seed=none"))), place)


def _tiny(text: str) -> str:
    """An experiment of ours on a network and on tasks that need no download."""
    own = iter(("classification", "pair", "regression") * 20)
    text = re.sub(r"(?:embedded|glue)/\w+|\be2e\b", lambda _: f"synthetic/{next(own)}", text)
    return text.replace("minilm-l6", "tiny-encoder").replace("smollm2-135m", "tiny-decoder")


def _insert(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(CHARACTERS) * rng.choice((1, 1, 3, 2000)) + text[at:]


def _delete(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + text[at + rng.choice((1, 2, 10)) :]


def _cut(rng: random.Random, text: str) -> str:
    return text[: rng.randrange(len(text) + 1)]


def _line(rng: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True)
    if not lines:
        return text
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    return "".join([*lines[:at], rng.choice(("", " ", "\t", "- ")) + lines[other], *lines[at:]])


def _scalar(rng: random.Random, text: str) -> str:
    """Replace what stands after a colon or a comma."""
    ends = [i for i, c in enumerate(text) if c in ":,["]
    if not ends:
        return text
    start = rng.choice(ends) + 1
    end = next((i for i in range(start, len(text)) if text[i] in ",}]\n"), len(text))
    return f"{text[:start]} {rng.choice(SCALARS)}{text[end:]}"


def _repeat(rng: random.Random, text: str) -> str:
    return text + rng.choice(
        (text, "---\n" + text, "a: " + "[" * 100_000, "- " * 5000, "? " * 3000, "x: &x [*x, *x]\n")
    )


def _bombs(rng: random.Random, text: str) -> str:
    one, many = rng.choice((("{x: 1}", "{{<<: [{}]}}"), ("[1, 1, 1]", "[{}]")))
    lines = [f"a0: &a0 {one}"]
    lines += [f"a{i}: &a{i} " + many.format(", ".join([f"*a{i - 1}"] * rng.randint(2, 9))) for i in range(1, 40)]
    return text + "\n".join(lines) + "\n"


def _bytes(rng: random.Random, text: str) -> bytes:
    raw = bytearray(text.encode(rng.choice(("utf-8", "utf-8", "utf-16", "utf-32", "utf-16-le"))))
    for _ in range(rng.choice((0, 1, 20))):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


_OF_TEXT: list[Callable[[random.Random, str], Any]] = [
    _insert,
    _delete,
    _cut,
    _line,
    _scalar,
    _scalar,
    _repeat,
    _bombs,
    _bytes,
]


def _structure(rng: random.Random, text: str) -> str:
    """Change a value, a key or the place of a value of a well-formed file."""
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text
    places = list(_places(tree))
    if not places:
        return text
    holder, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = rng.choice([[copy.deepcopy(holder[key])], {"a": copy.deepcopy(holder[key])}])
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice(("", "x", f"{key}s", f"{key}"[:-1], "<<", "x" * 5000, 1, None, True))] = holder.pop(key)
    elif kind == 3:
        other, where = rng.choice(places)
        holder[key] = copy.deepcopy(other[where]) if where in other or isinstance(other, list) else None
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])
