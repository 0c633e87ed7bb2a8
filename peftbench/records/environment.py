"""The environment of a run: code, packages, processor, threads. Records contain it; its hash is their `env_id`.

Two runs of the same code on the same machine have equal environments, and committing results does not change it. So it
contains a hash of the sources, and the last commit that touched the sources, not the newest commit. Facts from torch
are null unless the calling process has loaded torch, because this module imports nothing heavy.
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
    "threadpoolctl",  # which identifies the BLAS
)
BLAS = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS"}  # by the names in threadpoolctl


def facts(
    device: str, threads: int | None, plugins: Iterable[str | Path] = (), deterministic: bool = False
) -> dict[str, Any]:
    """Return the facts about code and machine that affect results, as JSON values.

    Args:
        device: the actual device, "cpu", "cuda:0" or "mps"; never "auto". Of several GPUs the model counts, not which
            of them ran: its number is left out.
        threads: CPU threads of one operation; None if not limited.
        plugins: files of methods given with `--plugin`; their hashes are part of the code.
        deterministic: whether only deterministic kernels ran. It is left out if not, as in older records.
    """
    return {
        "code": code(plugins),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device.partition(":")[0],
        "cpu": {"model": cpu_model(), "capability": _cpu_capability()},
        "gpu": _gpu(device),
        "blas": blas(),
        "threads": threads,
        **({"deterministic": True} if deterministic else {}),
    }


def blas() -> dict[str, str]:
    """Return the loaded BLAS libraries by the package that contains them: {"numpy": "OpenBLAS 0.3.30 SkylakeX"}.

    The last word is the kernel that the library chose for this processor; kernels sum in different orders. A shared
    library goes by its file's name. The result is empty if threadpoolctl finds no BLAS.
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
    """Return the package that contains a library (numpy.libs/libopenblas.so); else the library's own name."""
    inside = [p for p in library.parents if p.parent.name in ("site-packages", "dist-packages")]
    return inside[0].name.removesuffix(".libs") if inside else library.name.partition(".")[0]


def code(plugins: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Return the package's version, the hash of its sources, and the last commit that touched them.

    `commit` and `dirty` (whether the sources differ from that commit) are null outside a checkout.
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
    """Return the directories of the package and of the methods: nested in a wheel, next to each other in a checkout."""
    roots = {"peftbench": Path(__file__).parents[1]}
    found = importlib.util.find_spec("peftbench.methods")
    places = list(found.submodule_search_locations or []) if found else []
    if places:
        roots["peftbench/methods"] = Path(places[0])
    return roots


def source_hash(roots: dict[str, Path]) -> str:
    """Return 16 hex digits of the hash of all Python files, the same for a checkout and its wheel."""
    files = _sources(roots)
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def dirty(roots: dict[str, Path]) -> bool | None:
    """Whether a hashed source was changed, removed or added since the last commit.

    None outside a checkout of this project, and if git fails.
    """
    places = [str(p) for p in roots.values()]
    git = ["git", "--no-optional-locks", "-C", places[0]]  # several workers run git at the same time
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
    changed = _stdout([*git, "diff", "--name-only", "-z", "HEAD", "--", *places])
    return None if changed is None else any(name.endswith(".py") for name in changed.split("\0"))


def _sources(roots: dict[str, Path]) -> dict[str, Path]:
    """Return every Python file by its name in the package."""
    return {
        f"{name}/{path.relative_to(root).as_posix()}": path
        for name, root in roots.items()
        for path in root.rglob("*.py")
    }


def cpu_model() -> str | None:
    """Return the manufacturer's name of the processor; None if unknown."""
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
    """Return the last commit that changed the sources; None outside a checkout or before the first commit."""
    where = str(roots[0])
    if not _is_checkout(where):
        return None
    return _output(["git", "-C", where, "log", "-1", "--format=%H", "--", *map(str, roots)])


def _is_checkout(where: str) -> bool:
    """Whether the package is part of a git checkout. An installed package in another repository is not."""
    return _output(["git", "-C", where, "ls-files", "--error-unmatch", "__init__.py"]) is not None


def _output(command: list[str]) -> str | None:
    """Return what a command prints; None if it prints nothing, fails, hangs or is missing."""
    return _stdout(command) or None


def _stdout(command: list[str]) -> str | None:
    """Return what a command prints, maybe nothing; None if it fails, hangs or is missing."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # as in the paths of pathlib
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
