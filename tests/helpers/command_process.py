"""A process that carries out command lines of peftbench one after another, with its own home, caches and hub.

The hub's client reads HF_ENDPOINT and its like once, when it is imported; torch is imported once for many commands. No
address but the loopback's is known in the process: a look-up of another one fails, and is written down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

_NO_NETWORK = """
import os, socket
_known = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    name = host.decode() if isinstance(host, bytes) else host
    if name not in (None, "localhost", "127.0.0.1", "::1"):
        with open(os.environ["OUTSIDE"], "a") as f:
            f.write(f"{name}\\n")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return _known(host, *args, **kwargs)
socket.getaddrinfo = getaddrinfo
"""
_DRIVER = """
import contextlib, io, json, os, sys, traceback
wire, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
for line in sys.stdin:
    asked = json.loads(line)
    from peftbench.backbones import hub_model
    hub_model.snapshot.cache_clear()  # each command line is a process of its own elsewhere
    kept = dict(os.environ)
    os.environ.update(asked["env"])
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if isinstance(asked["do"], str):
                exec(asked["do"], {})
            else:
                from peftbench.cli import app
                sys.argv = ["peftbench", *asked["do"]]
                app.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = 1
            traceback.print_exc()
    os.environ.clear()
    os.environ.update(kept)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=wire, flush=True)
"""


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def environment(home: Path, hub: str, **more: str) -> dict[str, str]:
    """The environment of a process whose home and caches are in `home`, and whose hub is at the address `hub`."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "sitecustomize.py").write_text(_NO_NETWORK)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS", "XDG"))}
    return {
        **kept,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub,
        "PEFTBENCH_CACHE": str(home / "peftbench"),
        "PYTHONPATH": os.pathsep.join([str(home), str(ROOT)]),
        "OUTSIDE": str(home / "outside.txt"),
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "*",
        **more,
    }


def command(folder: Path, env: dict[str, str], *args: str, seconds: float = 500) -> Said:
    """Run one command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "peftbench", *args], cwd=folder, env=env, capture_output=True, text=True, timeout=seconds
    )
    return Said(done.returncode, done.stdout, done.stderr)


class CommandProcess:
    """A process in `folder` that takes commands until it is closed."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", _DRIVER]
        self._process = subprocess.Popen(argv, cwd=folder, env=env, stdin=pipe, stdout=pipe, text=True)

    def __call__(self, *args: str, **env: str) -> Said:
        """Carry out a command line, with further environment variables."""
        return self._ask(list(args), env)

    def python(self, code: str, **env: str) -> Said:
        """Execute Python code."""
        return self._ask(code, env)

    def _ask(self, do: Any, env: dict[str, str]) -> Said:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, "env": env}) + "\n")
        self._process.stdin.flush()
        return Said(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
