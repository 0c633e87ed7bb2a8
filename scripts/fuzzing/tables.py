"""Data files of users that are damaged, odd or made to do harm, in every format, planned as a task of their own."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzzing.case import Case

YAML = """\
name: mine
backbone: tiny-encoder
tasks: [{{task: local, train: {file}, text: text, label: label{options}}}]
budget: {{trainable_params: 2000, tolerance: 0.2, steps: 3, seeds: 1, max_length: 16, batch_size: 4}}
profile: false
methods: [lora]
"""
OPTIONS = (
    *(
        "",
        "",
        "",
        "",
        ", separator: ';'",
        ', separator: "\\t"',
        ", quotes: none",
        ", encoding: utf-16",
        ", encoding: cp1252",
    ),
    *(", encoding: idna", ", encoding: utf-7", ", encoding: unicode_escape", ", encoding: rot13", ", kind: regression"),
    *(
        ", missing: drop",
        ", missing: keep",
        ", labels: [a, b]",
        ", labels: [0, 1]",
        ", pair: other",
        ", limit_train: 3",
        ", limit_test: 1",
    ),
    *(
        ", kind: generation, answer: label",
        ", metric: f1",
        ", test: FILE",
        ", validation: FILE",
        ", name: 'x/../../y'",
        ', name: "\\e[2J"',
    ),
)
CELLS: tuple[Any, ...] = (
    *(
        "",
        " ",
        "a",
        "b",
        "good",
        "x" * 5000,
        "a\nb",
        'a"b',
        "a,b",
        "NaN",
        "null",
        "é",
        "\U0001f4a5",
        "\ud800",
        "\0",
        "\u202e",
        "\x1b[2J",
    ),
    *(
        "[SEP]",
        "[CLS] [MASK]",
        "1e400",
        "-1",
        "0",
        "1" * 5000,
        "=cmd()",
        "text",
        None,
        True,
        0,
        1.5,
        -0.0,
        10**30,
        float("nan"),
    ),
    *(float("inf"), [], ["a"], {}, {"a": 1}, [None]),
)
SUFFIXES = (
    ".csv",
    ".tsv",
    ".jsonl",
    ".json",
    ".parquet",
    ".csv.gz",
    ".jsonl.gz",
    ".json.gz",
    ".txt",
    "",
    ".CSV",
    ".gz",
)
Rows = list[dict[str, Any]]


def cases(rng: random.Random, count: int, folder: Path) -> Iterator[Case]:
    """Yield a file each, and an experiment whose task it is."""
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        suffix = rng.choice((*SUFFIXES[:8] * 3, *SUFFIXES))
        change = rng.choice([_cells, _cells, _bytes, _bytes, _whole, _special])
        path = place / f"data{suffix}"
        try:
            name = change(rng, path, suffix)
        except (OverflowError, TypeError, ValueError, NotImplementedError):  # the format cannot hold the value
            path.write_bytes(b"")
            name = "empty"
        options = rng.choice(OPTIONS).replace("FILE", path.name)
        text = YAML.format(file=path.name, options=options)
        (place / "e.yaml").write_text(text, encoding="utf-8")
        yield Case(f"{suffix}: {name}{options}"[:100], ("plan", "e.yaml"), place)


def _rows(rng: random.Random, count: int = 40) -> Rows:
    return [{"text": f"row {i} {rng.random()}", "label": "ab"[i % 2], "other": f"{i}"} for i in range(count)]


def _written(rows: Rows, suffix: str) -> bytes:
    """The rows in the format of a suffix. A format of text may hold what its own writers would refuse."""
    kind = suffix.lower().removesuffix(".gz")
    if kind == ".parquet":
        import pyarrow
        import pyarrow.parquet

        out = io.BytesIO()
        columns = {key: [r.get(key) for r in rows] for key in rows[0]} if rows else {}
        pyarrow.parquet.write_table(pyarrow.table(columns), out)
        return out.getvalue()
    if kind in (".json", ".jsonl"):
        lines = [json.dumps(row) for row in rows]
        text = "\n".join(lines) if kind == ".jsonl" else f"[{', '.join(lines)}]"
    else:
        between = "\t" if kind == ".tsv" else ","
        lines = [between.join(str(v) for v in row.values()) for row in rows]
        text = "\n".join([between.join(map(str, rows[0])) if rows else "", *lines])
    raw = text.encode("utf-8", "surrogatepass")
    return gzip.compress(raw) if suffix.endswith(".gz") else raw


def _cells(rng: random.Random, path: Path, suffix: str) -> str:
    """Change cells and names of columns."""
    rows = _rows(rng, rng.choice((0, 1, 3, 40)))
    for _ in range(rng.choice((1, 2, 30))):
        if rows:
            row = rng.choice(rows)
            row[rng.choice(("text", "label", "other", "", "x" * 300, "text "))] = rng.choice(CELLS)
            if rng.random() < 0.2:
                row.pop(rng.choice(list(row)), None)
    path.write_bytes(_written(rows, suffix))
    return "cells"


def _bytes(rng: random.Random, path: Path, suffix: str) -> str:
    """Damage a file: bytes that are others, gone, or there twice, or the end of another."""
    raw = bytearray(_written(_rows(rng), suffix))
    for _ in range(rng.choice((1, 1, 3, 50))):
        at, kind = rng.randrange(len(raw) + 1), rng.randrange(4)
        if kind == 0:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            raw = raw[:at]
        elif kind == 2:
            raw[at:at] = rng.choice(
                (b"\0", b'"', b",", b"\n", b"\r", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 5000, raw[:200])
            )
        else:
            del raw[at : at + rng.randrange(1, 30)]
    path.write_bytes(raw)
    return "bytes"


def _whole(rng: random.Random, path: Path, suffix: str) -> str:
    """A file that is odd as a whole."""
    name, content = rng.choice(_WHOLE)
    raw = content()
    path.write_bytes(gzip.compress(raw, 1) if suffix.endswith(".gz") else raw)
    return name


_WHOLE: list[tuple[str, Callable[[], bytes]]] = [
    ("empty", lambda: b""),
    ("one byte", lambda: b"x"),
    ("a mark", lambda: b"\xef\xbb\xbf"),
    ("NULs", lambda: bytes(1 << 20)),
    ("a header", lambda: b"text,label\n"),
    ("a long cell", lambda: b"text,label\n" + b"x" * 20_000_000 + b",a\ny,b\n"),
    ("a long cell in quotes", lambda: b'text,label\n"' + b"x\n" * 8_000_000 + b'",a\ny,b\n'),
    ("many columns", lambda: b",".join(b"c%d" % i for i in range(300_000)) + b"\n"),
    ("equal columns", lambda: b"c," * 100_000 + b"\n1\n"),
    ("an open quote", lambda: b'text,label\n"' + b"a,b\n" * 100_000),
    ("deep JSON", lambda: b"[" * 100_000),
    ("deep objects", lambda: b'{"text":' * 100_000),
    ("a large number", lambda: b'[{"text": 1' + b"0" * 5000 + b', "label": "a"}]'),
    ("a float beyond", lambda: b'{"text": 1e999, "label": "a"}\n{"text": -1e999, "label": "b"}'),
    ("keys without number", lambda: b"{" + b",".join(b'"k%d":1' % i for i in range(200_000)) + b"}"),
    ("equal keys", lambda: b"{" + b'"text":1,' * 100_000 + b'"label":2}'),
    ("half characters", lambda: b'{"text": "\\ud800", "label": "a"}\n'),
    ("another format", lambda: b"PK\x03\x04" + bytes(100)),
    ("empty lines", lambda: b"\n" * 1_000_000),
    ("returns", lambda: b"text,label\r" + b"a,b\r" * 1000),
    ("one class", lambda: b"text,label\n" + b"".join(b"t%d,a\n" % i for i in range(50))),
    ("a class each", lambda: b"text,label\n" + b"".join(b"t%d,c%d\n" % (i, i) for i in range(3000))),
    ("copies", lambda: b"text,label\n" + b"t,a\nt,b\n" * 500),
]


def _special(rng: random.Random, path: Path, suffix: str) -> str:
    """What is no file, or one that unpacks without end."""
    kind = rng.choice(
        ("a pipe", "a loop", "a device", "a directory", "missing", "a bomb", "a sparse file", "two parts")
    )
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a loop":
        path.symlink_to(path.name)
    elif kind == "a device":
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem")))
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a bomb":
        path.write_bytes(_bomb(rng.choice((b"text,label\n", b"[", b""))))
    elif kind == "a sparse file":
        with path.open("wb") as file:
            file.truncate(rng.choice((1 << 30, 1 << 36)))
    elif kind == "two parts":
        path.write_bytes(gzip.compress(b"text,label\na,b\n") + gzip.compress(b"c,d\n") + b"tail")
    return kind


def _bomb(start: bytes) -> bytes:
    """Two megabytes that unpack to two gigabytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * (1 << 20)
    return packer.compress(start) + b"".join(packer.compress(block) for _ in range(64)) + packer.flush()
