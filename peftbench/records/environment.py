"""What ran a run: code, packages, processor, threads. A record keeps these facts; their hash is its `env_id`.

The facts are equal for two runs of the same code on the same machine: they hold a hash of the sources, the commit that
last touched the sources rather than the newest one, and whether these sources (not the whole checkout) differ from it,
so that neither writing nor committing results changes them. Nothing heavy is imported here: what only torch can tell
is asked of it when the calling process has loaded it, and is null otherwise.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "transformers", "datasets", "bitsandbytes", "numpy", "scipy", "tokenizers", "safetensors"),
    "threadpoolctl",  # which names the BLAS
)
BLAS = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS"}  # as their makers write them


def facts(device: str, threads: int | None, plugins: Iterable[str | Path] = ()) -> dict[str, Any]:
    """JSON-ready facts about the code and the machine that decide a run's last bits.

    Args:
        device: the device that really runs, "cpu", "cuda:0" or "mps"; never "auto".
        threads: threads inside one operation; null where nothing limits them.
        plugins: files of methods given with `--plugin`: each is hashed, as it is part of the code that ran.
    """
    return {
        "code": code(plugins),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "cpu": {"model": cpu_model(), "capability": _cpu_capability()},
        "gpu": _gpu(device),
        "blas": blas(),
        "threads": threads,
    }


def blas() -> dict[str, str]:
    """The loaded BLAS libraries by the package that brings them: {"numpy": "OpenBLAS 0.3.30 SkylakeX"}.

    The last word is the kernel that the library picked for this processor; kernels add in other orders. A library that
    several packages share has its file's name in place of theirs. Empty where none is loaded that threadpoolctl knows.
    """
    from threadpoolctl import threadpool_info

    found = {_owner(Path(i["filepath"])): i for i in threadpool_info() if i["user_api"] == "blas"}
    return {
        owner: " ".join(
            filter(None, (BLAS.get(i["internal_api"], i["internal_api"]), i["version"], i.get("architecture")))
        )
        for owner, i in sorted(found.items())
    }


def _owner(library: Path) -> str:
    """The package in whose folder a library lies, as numpy.libs/libopenblas.so; else the library's own name."""
    inside = [p for p in library.parents if p.parent.name in ("site-packages", "dist-packages")]
    return inside[0].name.removesuffix(".libs") if inside else library.name.partition(".")[0]


def code(plugins: Iterable[str | Path] = ()) -> dict[str, Any]:
    """The package's version, the hash of its sources and, in a checkout, the last commit that touched them.

    `dirty` says whether that commit lacks some of what was hashed; null outside a checkout. (Older records lack it.)
    """
    roots = source_roots()
    version: dict[str, Any] = {
        "version": _version("peftbench"),
        "source": source_hash(roots),
        "commit": _commit(list(roots.values())),
        "dirty": dirty(roots),
    }
    files = [Path(p) for p in plugins]
    if files:
        version["plugins"] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in files}
    return version


def source_roots() -> dict[str, Path]:
    """Where the engine and the methods live: one directory inside the other as a wheel, side by side in a checkout."""
    roots = {"peftbench": Path(__file__).parents[1]}
    found = importlib.util.find_spec("peftbench.methods")
    places = list(found.submodule_search_locations or []) if found else []
    if places:
        roots["peftbench/methods"] = Path(places[0])
    return roots


def source_hash(roots: dict[str, Path]) -> str:
    """16 hex digits over the names and bytes of all Python files, the same for a checkout and its wheel."""
    files = _sources(roots)
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def dirty(roots: dict[str, Path]) -> bool | None:
    """Whether a source that `source_hash` takes in is changed, removed or unknown since the last commit.

    None outside a checkout of this project, and where git cannot tell.
    """
    places = [str(p) for p in roots.values()]
    git = ["git", "--no-optional-locks", "-C", places[0]]  # several workers ask at a time
    if not _is_checkout(places[0]):
        return None
    tracked = _output([*git, "ls-files", "-z", "--", *places])
    if tracked is None:
        return None
    known = {(Path(places[0]) / name).resolve() for name in tracked.split("\0")}
    if any(path.resolve() not in known for path in _sources(roots).values()):
        return True
    if _output([*git, "rev-parse", "HEAD"]) is None:
        return True  # nothing is committed yet
    changed = _said([*git, "diff", "--name-only", "-z", "HEAD", "--", *places])
    return None if changed is None else any(name.endswith(".py") for name in changed.split("\0"))


def _sources(roots: dict[str, Path]) -> dict[str, Path]:
    """Every Python file by its name in the package."""
    return {
        f"{name}/{path.relative_to(root).as_posix()}": path
        for name, root in roots.items()
        for path in root.rglob("*.py")
    }


def cpu_model() -> str | None:
    """The processor's name as its maker gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return platform.processor() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_capability() -> str | None:
    torch = sys.modules.get("torch")
    return str(torch.backends.cpu.get_cpu_capability()) if torch is not None else None


def _gpu(device: str) -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return {"name": name, "capability": f"{major}.{minor}", "cuda": torch.version.cuda}


def _commit(roots: list[Path]) -> str | None:
    """The last commit that changed the sources; None outside a checkout of this project or before its first commit."""
    where = str(roots[0])
    if not _is_checkout(where):
        return None
    return _output(["git", "-C", where, "log", "-1", "--format=%H", "--", *map(str, roots)])


def _is_checkout(where: str) -> bool:
    """False too where the package is installed inside somebody else's repository, in a .venv for example."""
    return _output(["git", "-C", where, "ls-files", "--error-unmatch", "__init__.py"]) is not None


def _output(command: list[str]) -> str | None:
    """What the command prints, or None where the program is missing, fails, hangs or prints nothing."""
    return _said(command) or None


def _said(command: list[str]) -> str | None:
    """What the command prints, empty too; None where the program is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # as Path takes file names
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
