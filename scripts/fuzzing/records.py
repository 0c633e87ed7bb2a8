"""Records with one odd value and a right checksum, read by `plan`, `report`, `verify` and `run`.

The directory has sound records of a tiny experiment too. The commands have nothing to train: every run is done, and
`verify` meets methods of another version.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from fuzzing.case import Case

EXPERIMENT = """\
name: strange
backbone: tiny-encoder
tasks: [synthetic/classification]
budget: {steps: 4, batch_size: 4, max_length: 32, seeds: 1, trials: 2, extensions: 1}
profile: {processes: 1, rounds: 1, warmup: 1}
methods: [linear_probe, {lora: {rank: 1, lr: 0.01}}]
"""
ODD: list[Any] = [  # in place of any value
    *(None, True, False, 0, 1, -1, -0.0, 0.5, 1e-300, 1e300, -1e300, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400),
    *("", "x", " ", "finished", "\x00", "\x1b[2J\x1b[31m", "\r\n\x07", "‮abc", "../../escaped", "/etc/passwd", "~/x"),
    *("-" * 300, "long" * 100_000, "$\\frac{", "| a | b |", "<script>alert(1)</script>", "é" * 90, "nan", "Infinity"),
    *("2026-13-45T99:99:99Z", "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00", "2026-01-01"),
    *([], {}, [[]], [None], ["x"], {"": ""}, {"step": 1}, list(range(3_000)), {str(i): i for i in range(500)}),
]
RAW = [  # no text that json.dumps gives
    *("NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 6_000, '"\\ud800"', '"\\u0000"', "01", "{}}", "// x"),
    *("[" * 500 + "]" * 500, '{"a":' * 200 + "1" + "}" * 200, "[" * 100_000, "0x10", "'x'", "-", "1_000"),
]
COMMANDS = [  # command line, and how often it is drawn
    (("plan", "e.yaml", "--results", "r"), 10),
    (("verify", "r", "--sample", "1"), 9),
    (("report", "r"), 2),
    (("run", "e.yaml", "--results", "r"), 1),
    (("plan", "e.yaml", "--results", "new", "--only", "method=lora", "--against", "r"), 1),
]


def cases(rng: random.Random, count: int, folder: Path) -> Iterator[Case]:
    """Yield cases; each draws a record, a place in it, an odd value and a command."""
    sound = _sound(folder / "sound")
    for number in range(count):
        here = folder / str(number)
        shutil.copytree(sound, here)
        path = rng.choice(sorted((here / "r" / "runs").glob("*.json")))
        (arguments,) = rng.choices([c for c, _ in COMMANDS], [w for _, w in COMMANDS])
        repeats = arguments[0] in ("run", "verify")
        name = _spoil(rng, path, beside=repeats or rng.random() < 0.3)
        if repeats and arguments[0] == "verify":
            for other in (here / "r" / "runs").glob("*.json"):
                _age(other)
        yield Case(f"{arguments[0]}: {name}", arguments, here)


def encoded(body: dict[str, Any], raw: str | None = None) -> bytes:
    """Return the bytes of a record file; `raw` stands for the text "RAW" in it. The checksum is right in any case."""
    import hashlib

    lines = (f"{json.dumps(k)}:{json.dumps(body[k], sort_keys=True, separators=(',', ':'))}" for k in sorted(body))
    text = "{\n" + ",\n".join(lines) + "\n}"
    if raw is not None:
        text = text.replace('"RAW"', raw)
    checksum = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f'{text[:-2]},\n"checksum":"{checksum}"\n}}\n'.encode(errors="surrogatepass")


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a body; of long lists, a few."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for i, inner in list(enumerate(value))[:3]:
            yield from places(inner, (*at, i))


def with_ids(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body with the ids of its spec and environment, where they can be computed."""
    from peftbench.records import consistency, spec

    body = deepcopy(body)
    try:
        read = spec.ProfileSpec.from_dict if body["kind"] == "profile" else spec.RunSpec.from_dict
        asked = read(body["spec"])
        body |= {"spec_id": asked.id, "slug": asked.slug, "env_id": consistency.env_id(body["env"])}
    except Exception:  # what has no id keeps the old one
        pass
    return body


def _spoil(rng: random.Random, path: Path, beside: bool) -> str:
    """Write a record with one odd value in place of one that is sound, or beside it; return what was changed."""
    body = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "checksum"}
    known = list(places(body))
    at = rng.choice(known)
    way = rng.choices(["value", "raw", "missing", "extra", "twice", "scaled", "copied"], [8, 3, 1, 1, 1, 3, 1])[0]
    raw: str | None = None
    if way == "missing":
        _owner(body, at).pop(at[-1])
        shown = "missing"
    elif way == "extra":
        target = next((_get(body, a) for a in known if isinstance(_get(body, a), dict)), body)
        target["no such field"] = rng.choice(ODD[:40])
        shown = "extra field"
    elif way == "scaled" and isinstance(_get(body, at), int | float) and not isinstance(_get(body, at), bool):
        factor = rng.choice([-1, 2, 10**6, 10**15, 1 + 1e-6])
        _owner(body, at)[at[-1]] = type(_get(body, at))(_get(body, at) * factor)
        shown = f"times {factor}"
    elif way == "copied":
        _owner(body, at)[at[-1]] = deepcopy(_get(body, rng.choice(known)))
        shown = "another field's value"
    elif way == "raw":
        raw = rng.choice(RAW)
        _owner(body, at)[at[-1]] = "RAW"
        shown = raw[:20]
    else:
        odd = rng.choice(ODD)
        _owner(body, at)[at[-1]] = odd
        shown = repr(odd)[:30]
    if rng.random() < 0.5 and raw is None:
        body = with_ids(body)
    content = encoded(body, raw)
    if way == "twice":
        content = encoded(body, None).replace(b'"kind":', b'"kind":"x",\n"kind":', 1)
        shown = "a key twice"
    if beside:
        path = path.with_name(re.sub(r"--\d+\.json$", "--7.json", path.name))
    path.write_bytes(content)
    return f"{'.'.join(map(str, at))} = {shown}"


def _age(path: Path) -> None:
    """Let a record's method be of another version, so that it is not repeated, where it has one."""
    try:
        body = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "checksum"}
        methods = body["spec"].get("methods") or [body["spec"]["method"]]
        for method in methods:
            method["version"] = method["version"] + 7
        path.write_bytes(encoded(with_ids(body)))
    except Exception:  # odd records stay as they are
        path.with_suffix(".json").touch()


def _get(body: Any, at: tuple[Any, ...]) -> Any:
    for step in at:
        body = body[step]
    return body


def _owner(body: Any, at: tuple[Any, ...]) -> Any:
    return _get(body, at[:-1])


def _sound(folder: Path) -> Path:
    """Run the experiment, once, in `folder`; return the folder, without its report."""
    folder.mkdir()
    (folder / "e.yaml").write_text(EXPERIMENT)
    own = {**os.environ, "PEFTBENCH_CACHE": str(folder.parent.parent / "desk" / "cache")}
    command = [sys.executable, "-m", "peftbench", "run", "e.yaml", "--results", "r", "--quiet"]
    subprocess.run(command, cwd=folder, env=own, check=True)
    shutil.rmtree(folder / "r" / "report")
    return folder
