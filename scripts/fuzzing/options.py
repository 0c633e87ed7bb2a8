"""Options, arguments and environment variables that make no sense, for every command.

The options are read from the command line itself, so that a new one is tried, too. Where a sensible value would start
training or a download, the rest of the command line keeps it from starting.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzzing.case import Case
from fuzzing.experiments import TINY

RECORDS = Path(__file__).resolve().parent.parent.parent / "results" / "reference" / "ci_smoke"
BASES: dict[str, list[tuple[str, ...]]] = {  # command lines that end soon whatever one more option says
    "run": [("refused.yaml",), ("tiny.yaml", "--only", "seed=none"), ("tiny.yaml", "--results", "file")],
    "plan": [("tiny.yaml",), ("tiny.yaml", "--only", "seed=none"), ("tiny.yaml", "--only", "method=lora")],
    "profile": [("refused.yaml",), ("tiny.yaml", "--only", "seed=none"), ("tiny.yaml", "--results", "file")],
    "report": [("empty",), ("nowhere",), (str(RECORDS), "--json")],
    "figures": [("nothing",), ("lora_rank", "--results", "empty", "--out", "out")],
    "verify": [("empty",), ("nowhere",)],
    "methods": [(), ("lora",)],
    "tasks": [(), ("glue/rte",)],
    "fetch": [("nothing",)],
    "schema": [(), ("experiment",)],
    "new-method": [()],
    "check-method": [("nothing",)],
    "count": [("tiny-encoder", "lora"), ("tiny-encoder", "vera", "rank=4")],
    "estimate": [("tiny-encoder", "lora", "--seq", "8", "--batch", "2"), ("tiny-encoder", "full", "--seq", "8")],
    "export": [("nowhere", "out")],
    "import": [("nowhere", "--backbone", "tiny-encoder"), ("empty", "--backbone", "nothing")],
}
SHORT = (
    *(
        "",
        " ",
        "\n",
        "\t",
        "0",
        "-1",
        "1",
        "3",
        "1.5",
        "1e400",
        "-1e400",
        "nan",
        "inf",
        "true",
        "null",
        "None",
        "é",
        "漢字",
    ),
    *(
        "\U0001f4a5",
        "\udcff\udcfe",
        "\x1b[2J",
        "\u202e",
        "%s%n",
        "$(id)",
        "`id`",
        ";",
        "&",
        "*",
        "?",
        "-",
        "--",
        "---",
        "=",
        "a=",
    ),
    *(
        "=b",
        "a=b",
        "{x: [",
        "[1, 2]",
        "{}",
        "[]",
        "!!python/object:os.system x",
        "&a [*a]",
        "lora",
        "full",
        "method=lora",
    ),
    *(
        "method=",
        "method=*",
        "task=*",
        "seed=-1",
        "seed=1e3",
        "seed=1",
        "cuda",
        "cuda:99",
        "cuda:-1",
        "cuda:",
        "mps",
        "meta",
    ),
    *(
        "cpu",
        "auto",
        "CPU",
        "budget.steps=0",
        "budget.steps=1" + "0" * 23,
        "budget=3",
        "methods.lora.rank=x",
        "tasks.*.steps=-1",
    ),
    *(
        "name=\udcff",
        ".=1",
        "a..b=1",
        "budget.=1",
        "lora: {rank: 0}",
        "lora: 3",
        "local",
        "bfloat16",
        "float16",
        "adamw",
    ),
    *(
        "classification",
        "generation",
        "rank=-1",
        "rank=1" + "0" * 23,
        "roles=x",
        "alpha=nan",
        "8GB",
        "0GB",
        "1" + "0" * 400 + "GB",
    ),
    *("score,score", "score", ",,,", "peft", "merged", "sdpa"),
)
PATHS = (
    *(
        ".",
        "..",
        "/proc",
        "/dev/zero",
        "/dev/null",
        "/dev/stdin",
        "/dev/full",
        "/proc/self/mem",
        "/proc/nothing",
        "/nonexistent/x",
    ),
    *(
        "pipe",
        "empty",
        "loop",
        "file",
        "file/x",
        "tiny.yaml",
        "refused.yaml",
        "~",
        "~nobody-here/x",
        "nowhere",
        "nul.py",
    ),
    *(
        "raises.py",
        "exits.py",
        "endless.py",
        "prints.py",
        "syntax.py",
        "nothing.py",
        "taken.py",
        "folder.py",
        "pipe.py",
        "binary.py",
    ),
    *("base.py", "import.py", "not-python.txt"),
)
LONG = (
    "1" + "0" * 23,
    "1" + "0" * 5000,
    "a" * 300,
    "a" * 100_000,
    "a/" * 3000,
    "x y " * 20_000,
    "[" * 50_000,
    "a=" + "b" * 90_000,
)
VARIABLES = {
    "PEFTBENCH_CACHE": (*PATHS[:12], "relative/cache", "\n", "a" * 300, "file", "é", "\udcff"),
    "PEFTBENCH_WHEELS": (*PATHS[:12], "a" * 300),
    "HOME": ("", "/nonexistent", "file", "relative", "/dev/null"),
    "XDG_CACHE_HOME": ("", "relative", "/dev/null", "file"),
    "OMP_NUM_THREADS": ("", "0", "-1", "x", "1.5", "1" + "0" * 23, "2,x", ",", " 3 ", "٣", "1" * 5000),
    "COLUMNS": ("", "0", "-5", "x", "1", "99999999", "1" + "0" * 23),
    "LINES": ("", "x"),
    "NO_COLOR": ("", "x"),
    "TERM": ("", "dumb", "nonsense"),
    "LANG": ("", "xx_YY.nonsense", "C"),
    "LC_ALL": ("C", "nonsense"),
    "PYTHONHASHSEED": ("x",),
    "TOKENIZERS_PARALLELISM": ("maybe", ""),
    "HF_HUB_OFFLINE": ("maybe", ""),
    "HF_HOME": ("file", "/dev/null", "\n"),
    "HF_ENDPOINT": ("nonsense", ""),
    "CUDA_VISIBLE_DEVICES": ("x", "-1", "99"),
    "MPLBACKEND": ("nonsense",),
    "SOURCE_DATE_EPOCH": ("x", "-1"),
}
PLUGINS = {
    "raises.py": "raise ValueError('x' * 100_000)",
    "exits.py": "import sys\nsys.exit(3)",
    "endless.py": "def f():\n    f()\n\n\nf()",
    "prints.py": "print('x')\nraise RuntimeError",
    "syntax.py": "def (",
    "nothing.py": "",
    "nul.py": "x = 1\0",
    "taken.py": "from peftbench.method import Method, register\n\n\n@register\nclass L(Method):\n    name = 'lora'\n",
    "binary.py": "\udcff\udcfe",
    "base.py": "class Own(BaseException):\n    pass\n\n\nraise Own('own')",
    "import.py": "import nothing_of_this_name",
    "not-python.txt": "x",
    "tiny.yaml": TINY,
    "refused.yaml": TINY + "jobs: 0\n",
    "file": "x",
}


def cases(rng: random.Random, count: int, folder: Path) -> Iterator[Case]:
    """Yield command lines with one to three odd values, and some with odd environment variables."""
    takers = _options()
    for number in range(count):
        place = folder / str(number)
        _fill(place)
        command = rng.choice(sorted(BASES))
        arguments, name, environment = [command, *rng.choice(BASES[command])], [], {}
        if rng.random() < 0.25:
            variable = rng.choice(sorted(VARIABLES))
            environment = {variable: rng.choice(VARIABLES[variable])}
            name.append(f"{variable}={environment[variable][:20]!r}")
        for _ in range(rng.choice((0, 1) if environment else (1, 1, 1, 2, 3))):
            change = rng.choice([_option, _option, _option, _argument])
            name.append(change(rng, arguments, takers[command]))
        if any("\0" in a for a in arguments):
            continue
        yield Case(f"{command}: {', '.join(name)}"[:100], tuple(arguments), place, environment)


def _options() -> dict[str, list[tuple[str, bool]]]:
    """The options of each command, and whether each is a flag."""
    import typer

    from peftbench.cli.app import app

    group: Any = typer.main.get_command(app)
    return {
        name: [
            (p.opts[0], bool(p.is_flag))
            for p in command.params
            if p.param_type_name == "option" and p.opts[0] != "--help"
        ]
        for name, command in group.commands.items()
    }


def _value(rng: random.Random) -> str:
    return rng.choice(rng.choice((SHORT, SHORT, PATHS, PATHS, LONG)))


def _option(rng: random.Random, arguments: list[str], options: list[tuple[str, bool]]) -> str:
    option, is_flag = rng.choice([*options, ("--unknown", False), ("-Z", True)])
    if option in ("--wheels", "--keep", "--results", "--out") and rng.random() < 0.7:
        value = rng.choice(PATHS)
    else:
        value = _value(rng)
    form = rng.randrange(4)
    arguments += [option] if is_flag or form == 3 else [f"{option}={value}"] if form == 2 else [option, value]
    return f"{option} {value[:20]!r}"


def _argument(rng: random.Random, arguments: list[str], options: list[tuple[str, bool]]) -> str:
    value, at = _value(rng), rng.randrange(len(arguments))
    if arguments[0] not in ("run", "profile", "fetch", "check-method") and rng.random() < 0.5:
        arguments[at] = value
    else:
        arguments.append(value)
    return f"argument {value[:20]!r}"


def _fill(place: Path) -> None:
    """Make what the values name."""
    (place / "empty").mkdir(parents=True)
    (place / "folder.py").mkdir()
    (place / "loop").symlink_to("loop")
    for pipe in ("pipe", "pipe.py"):
        os.mkfifo(place / pipe)
    for name, text in PLUGINS.items():
        (place / name).write_bytes(text.encode("utf-8", "surrogateescape"))
